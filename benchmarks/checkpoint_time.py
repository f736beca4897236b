"""How long training stands still for a checkpoint, and what a rank reads of one.

    python benchmarks/checkpoint_time.py FOLDER [--ranks 2] [--model medium] [--rounds 5]

Ranks are processes of this machine that talk by gloo. Saved are weights and both moments, in fp32,
in three ways, in turns: gathered on the first rank, which writes them (as Puna did at first, with
neither checksum nor flush); by each rank, waited for; by each rank, behind training. Then the
checkpoint is read in other layouts, and the bytes that a rank asked files for are counted
(/proc/self/io), of which checking is those for checksums.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from puna.config import ModelConfig, preset
from puna.formats.manifest import read_manifest
from puna.formats.network import state_tensors
from puna.formats.run_folder import checkpoint_path, steps_saved
from puna.formats.safetensors_file import write_safetensors
from puna.model import drawn
from puna.parallel.part import Options, take_part
from puna.parallel.place import take_place
from puna.plan.layout import Layout
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import read_model, write_model
from puna.train.checkpoints import RunState, moments_of, restore, verify
from puna.train.loop import Settings, make_optimizer
from puna.train.several import Several

PORT = 29_533


def make(config: ModelConfig, line: str) -> tuple[Several, torch.optim.Optimizer]:
    """A rank's part after one update with gradients of zeros."""
    part = take_part(config, take_place(Layout.parse(line), "cpu"), Options("fp32"))
    part.fill(drawn(config, torch.Generator().manual_seed(0)))
    optimizer = make_optimizer(part.network, Settings(steps=1, warmup_steps=0))
    for weight in part.network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    stage: Any = None
    return Several(part, stage), optimizer


def gathered(folder: Path, trainee: Several, optimizer: torch.optim.Optimizer) -> None:
    """All tensors on the first rank, written by it."""
    tensors = dict(trainee.network.named_parameters())
    moments = dict(moments_of(trainee.network, optimizer))
    if trainee.leads:
        folder.mkdir(parents=True)
    for name, group in (("model", tensors), ("optimizer", moments)):
        whole = {}
        for key, tensor in group.items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if trainee.leads:
                whole[key] = full.detach()
        if trainee.leads:
            with open(folder / f"{name}.safetensors", "xb") as file:
                write_safetensors(file, state_tensors(whole), {})
    dist.barrier()


def seconds(action: Callable[[], None]) -> float:
    """Of the slowest rank."""
    dist.barrier()
    started = time.perf_counter()
    action()
    taken = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.item()


def bytes_read() -> int:
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


def saving(
    folder: Path, config: ModelConfig, vocabulary: Vocabulary, rounds: int
) -> dict[str, float]:
    """Medians of seconds; `behind` is from the begin of a save behind training to its end."""
    num_ranks = dist.get_world_size()
    trainee, optimizer = make(config, f"fsdp={num_ranks}")
    taken: dict[str, list[float]] = {}

    def save(step: int, wait: bool) -> None:
        state = RunState(step, step)
        trainee.save(folder / "run", optimizer, state, vocabulary, keep=1, wait=wait)

    for number in range(rounds + 1):
        if trainee.leads:
            shutil.rmtree(folder / "old", ignore_errors=True)
            os.sync()  # what was written before is not waited for again
        old = seconds(lambda: gathered(folder / "old", trainee, optimizer))
        if trainee.leads:
            os.sync()
        waited = seconds(lambda step=2 * number + 1: save(step, True))
        begun = time.perf_counter()
        behind = seconds(lambda step=2 * number + 2: save(step, False))
        trainee.settle()
        if number:  # the first takes the memory for copies
            taken.setdefault("gathered", []).append(old)
            taken.setdefault("waited for", []).append(waited)
            taken.setdefault("behind training", []).append(behind)
            taken.setdefault("until committed", []).append(time.perf_counter() - begun)
    return {name: statistics.median(times) for name, times in taken.items()}


def reading(folder: Path, config: ModelConfig, line: str) -> dict[str, float]:
    """Seconds, and the most bytes that a rank read."""
    trainee, optimizer = make(config, line)
    run = folder / "run"
    path = checkpoint_path(run, steps_saved(run)[-1])
    dist.barrier()
    before = bytes_read()
    verify(path, trainee.rank, dist.get_world_size())
    checked = bytes_read() - before
    before = bytes_read()
    took = seconds(lambda: assert_restored(run, trainee, optimizer))
    read = bytes_read() - before - checked
    most = torch.tensor([checked, read])
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return {"seconds": took, "checking": most[0].item(), "reading": most[1].item()}


def assert_restored(run: Path, trainee: Several, optimizer: torch.optim.Optimizer) -> None:
    assert restore(run, trainee, optimizer) is not None


def rank_main(options: argparse.Namespace) -> None:
    """What each rank does; the first says what was found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    config = preset(options.model)
    vocabulary = read_model((options.folder / "tokenizer.model").read_bytes())
    num_ranks = dist.get_world_size()
    if not options.read:
        found: Any = saving(options.folder, config, vocabulary, options.rounds)
    else:
        found = {}
        for line in options.read:
            found[line] = reading(options.folder, config, line)
    if dist.get_rank() == 0:
        (options.folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    assert num_ranks == options.ranks


def ranks(options: argparse.Namespace, num_ranks: int, *words: str) -> Any:
    """Runs this file in so many processes; what the first found."""
    processes = []
    for rank in range(num_ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": PORT}
        environment = os.environ | {key: str(value) for key, value in place.items()}
        command = [sys.executable, __file__, str(options.folder), "--ranks", str(num_ranks)]
        command += ["--model", options.model, "--rounds", str(options.rounds), *words]
        processes.append(subprocess.Popen(command, env=environment | {"MASTER_ADDR": "127.0.0.1"}))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("a rank failed")
    return json.loads((options.folder / "found.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(prog="checkpoint_time.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="on the disk to measure; is made, and kept")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", default="medium")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--read", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "RANK" in os.environ:
        rank_main(options)
        return
    from puna.commands.models import named_vocabulary

    options.folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.folder / "run", ignore_errors=True)
    (options.folder / "tokenizer.model").write_bytes(write_model(named_vocabulary("cria")))
    taken = ranks(options, options.ranks)
    run = options.folder / "run"
    path = checkpoint_path(run, steps_saved(run)[-1])
    size = sum(facts.bytes for facts in read_manifest(path).files.values())
    print(f"{options.model}, {options.ranks} ranks, {size / 1e6:.0f} MB a checkpoint")
    for name, value in taken.items():
        print(f"  {name:16} {value:7.3f} s")
    print("read in other layouts, of the rank that read most")
    layouts = {options.ranks: [f"fsdp={options.ranks}", f"tp={options.ranks}"], 1: ["fsdp=1"]}
    for num_ranks, lines in layouts.items():
        for line, found in ranks(options, num_ranks, "--read", *lines).items():
            checked, read = found["checking"] / 1e6, found["reading"] / 1e6
            print(
                f"  {line:8} {found['seconds']:6.2f} s, {checked:7.1f} MB checked, "
                f"{read:7.1f} MB read"
            )


if __name__ == "__main__":
    main()
