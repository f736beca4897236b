"""How fast one GPU pretrains: tokens a second, MFU and memory, of bf16 and float8.

    python benchmarks/training_gpu.py --json training.json             (Llama 2 7B, one H200)
    python benchmarks/training_gpu.py --model 1b                       (what an 80 GB GPU holds)
    python benchmarks/training_gpu.py --model tiny --device cpu --steps 2   (does it run at all)

The real step of training (`train.several`, layout fsdp=1): fp32 weights, gradients and AdamW, 16
bytes a parameter, and one block at a time gathered as bf16; chunked loss, compiled blocks, clipping
and update included. Each kind of recomputation is tried with growing micro-batches until memory
ends; the best of each kind of product is said at the end beside what it should be. Weights and
tokens are random. MFU is (6 N + 12 L d T) tokens/s over the peak in the type of the products;
recomputation is not counted (`puna/plan/counts.py`). Needs torch and numpy, and torchao for float8.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import json
import math
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.config import ModelConfig, preset
from puna.parallel.fsdp import local
from puna.parallel.part import Options, Part, take_part
from puna.parallel.place import Place, leave, take_place
from puna.parallel.recompute import RECOMPUTE
from puna.plan.counts import flops_per_token
from puna.plan.hardware import peak_tflops
from puna.plan.layout import Layout
from puna.train.loop import Settings, make_optimizer, optimizer_step
from puna.train.several import Several
from puna.train.watch import name_of, used_memory

KINDS = ("bf16", "float8")
BYTES_A_PARAMETER = 16  # weight, gradient and AdamW's two moments, fp32
LOSS_CHUNK = 2048  # tokens whose logits exist at once
MARKS = (
    "bf16 MFU of at least 55 % of 989 TFLOP/s; float8 at least 1.3 times bf16's tokens/s; "
    "torchtitan published 33-39 % and 8,532 tokens/s (H100)"
)


@dataclass(frozen=True)
class Job:
    place: Place
    config: ModelConfig
    windows: int  # a step
    steps: int
    compile: bool

    @property
    def on_gpu(self) -> bool:
        return self.place.device.type == "cuda"


@dataclass(frozen=True)
class Result:
    """`mfu` None where the device's peak is not known; `memory` the most bytes at once."""

    kind: str
    recompute: str
    micro_batch: int
    tokens_per_second: float
    tflops: float
    mfu: float | None
    memory: int
    step_seconds: float
    loss: float


@dataclass(frozen=True)
class RandomWindows:
    """The stage: pieces of random tokens, the same in each step."""

    job: Job
    micro_batch: int

    def micro_batches(self, step: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.job.windows, self.job.config.context_length + 1)
        ids = torch.randint(self.job.config.vocab_size, shape, generator=generator)
        return list(ids.to(self.job.place.device).split(self.micro_batch))

    def num_tokens(self, batch: Tensor) -> int:
        return batch[:, 1:].numel()

    def windows(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return batch[:, :-1], batch[:, 1:], None

    def loss(self, model: Any, network: Any, batch: Tensor) -> Tensor:
        raise NotImplementedError("one process alone has it")

    def evaluate(self, loss: Any) -> dict[str, Any]:
        return {}


def measure(job: Job, kind: str, recompute: str, micro_batch: int) -> Result:
    """Steps of `job.windows` windows in pieces of `micro_batch`, the first not timed."""
    float8 = {"bf16": "no", "float8": "yes" if job.on_gpu else "emulated"}[kind]
    options = Options("bf16", recompute, job.compile, float8)
    part = take_part(job.config, job.place, options)
    fill(part)
    stage = RandomWindows(job, micro_batch)
    trainee = Several(part, stage, loss_chunk=LOSS_CHUNK)
    settings = Settings(steps=job.steps + 1, warmup_steps=0)
    optimizer = make_optimizer(trainee.network, settings)
    batches = stage.micro_batches(0)
    num_tokens = sum(stage.num_tokens(batch) for batch in batches)
    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for step in range(job.steps + 1):
        if step == 1:
            settle(job)
            started = time.perf_counter()
        loss, _ = optimizer_step(
            trainee, optimizer, batches, num_tokens, rate=1e-4, grad_clip=settings.grad_clip
        )
    settle(job)
    seconds = (time.perf_counter() - started) / job.steps
    speed = num_tokens / seconds
    tflops = speed * flops_per_token(job.config) / 1e12
    peak = peak_tflops(name_of(job.place.device), "fp8" if kind == "float8" else "bf16")
    return Result(
        kind, recompute, micro_batch, speed, tflops, tflops / peak if peak else None,
        used_memory(job.place.device), seconds, loss,
    )  # fmt: skip


@torch.no_grad()
def fill(part: Part) -> None:
    """First weights, drawn where they lie."""
    for name, weight in part.network.named_parameters():
        if name.endswith("norm.weight"):
            local(weight).fill_(1.0)
        else:
            local(weight).normal_(0.0, 0.02)


def settle(job: Job) -> None:
    """Waits until the GPU has done what it was given."""
    if job.on_gpu:
        torch.cuda.synchronize()


def free(job: Job) -> None:
    """Lets go of the last network, its compiled code, and its memory."""
    torch._dynamo.reset()
    gc.collect()
    if job.on_gpu:
        torch.cuda.empty_cache()


def tried(job: Job, kind: str, recompute: str, micro_batch: int) -> Result | str:
    """The measurement, or why there is none."""
    try:
        return measure(job, kind, recompute, micro_batch)
    except torch.OutOfMemoryError:
        return "out of memory"


def misfit(job: Job, total: int) -> str | None:
    """Why a model cannot be trained in `total` bytes, whatever is recomputed."""
    needed = BYTES_A_PARAMETER * job.config.num_parameters
    if needed < total:
        return None
    return (
        f"{job.config.num_parameters:,} parameters take {needed / 1e9:.0f} GB with gradients and "
        f"optimizer in fp32, and this GPU has {total / 1e9:.0f} GB: it does not fit; use a larger "
        "GPU, several (puna pretrain --parallel fsdp=N), or a smaller --model"
    )


def one_rank(device: str) -> Place:
    """The only process of a layout."""
    with socket.socket() as free_port:
        free_port.bind(("127.0.0.1", 0))
        port = free_port.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0",
        "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
    }  # fmt: skip
    return take_place(Layout(), device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="7b", help="a preset of puna/config.py")
    parser.add_argument("--context-length", type=int, help="tokens of a window; the preset's")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--windows", type=int, help="a step: 8, on a CPU 2")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, default=list(RECOMPUTE))
    parser.add_argument("--micro-batches", nargs="+", type=int,
                        help="windows at once, until memory ends: 1 2 4 8, on a CPU 1")  # fmt: skip
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction,
                        help="torch.compile of the blocks; on a GPU yes")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=540, help="nothing begins after these")
    parser.add_argument("--json", type=Path, help="where the figures go, as they come")
    args = parser.parse_args()
    began = time.perf_counter()
    on_gpu = torch.device(args.device).type == "cuda"
    # Pieces of several sizes come and go beside a state that fills most of the memory.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    try:
        config = preset(args.model)
        if args.context_length:
            config = dataclasses.replace(config, context_length=args.context_length)
    except ValueError as error:
        sys.exit(str(error))
    if on_gpu and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --device cpu --model tiny shows that the script runs")
    windows = args.windows or (8 if on_gpu else 2)
    micro_batches = args.micro_batches or ([1, 2, 4, 8] if on_gpu else [1])
    if wrong := [size for size in micro_batches if size < 1 or windows % size]:
        sys.exit(f"{windows} windows do not divide into pieces of {wrong[0]}")
    place = one_rank(args.device)
    job = Job(place, config, windows, args.steps, on_gpu if args.compile is None else args.compile)
    facts = {"device": name_of(place.device), "torch": torch.__version__, "model": args.model,
             "parameters": config.num_parameters, "context_length": config.context_length,
             "flops_per_token": flops_per_token(config)}  # fmt: skip
    print(facts, flush=True)
    if on_gpu and (problem := misfit(job, torch.cuda.get_device_properties(0).total_memory)):
        sys.exit(problem)
    print(f"the marks: {MARKS}", flush=True)
    found: list[Result] = []
    left_out: list[str] = []
    for kind, recompute in [(k, r) for k in args.kinds for r in args.recompute]:
        if kind == "float8" and importlib.util.find_spec("torchao") is None:
            left_out.append(f"{kind}, {recompute}: torchao is not installed")
            continue
        for micro_batch in micro_batches:
            case = f"{kind}, recompute {recompute}, micro-batch {micro_batch}"
            if time.perf_counter() - began > args.seconds:
                left_out.append(f"{case}: no time")
                continue
            free(job)
            result = tried(job, kind, recompute, micro_batch)
            if isinstance(result, str):
                left_out.append(f"{case}: {result}")
                print(f"{case}: {result}", flush=True)
                break
            found.append(result)
            show(result)
            write(args.json, facts, found, left_out)
    write(args.json, facts, found, left_out)
    for line in (*left_out, *conclusion(found)):
        print(line)
    leave()
    if not found or not all(math.isfinite(result.loss) for result in found):
        sys.exit("nothing was measured, or a loss is no number")


def show(result: Result) -> None:
    share = "" if result.mfu is None else f"  MFU {result.mfu:6.1%}"
    print(
        f"{result.kind:7} recompute {result.recompute:9} micro-batch {result.micro_batch:2}"
        f"  {result.tokens_per_second:10,.0f} tokens/s  {result.tflops:8.4g} TFLOP/s{share}"
        f"  {result.memory / 1e9:6.1f} GB  {result.step_seconds:.2f} s a step",
        flush=True,
    )


def conclusion(found: list[Result]) -> list[str]:
    """The best of each kind, and how they stand to the marks."""
    best = {
        kind: max((r for r in found if r.kind == kind), key=lambda r: r.tokens_per_second)
        for kind in KINDS
        if any(r.kind == kind for r in found)
    }
    lines = [f"best {k}: {r.tokens_per_second:,.0f} tokens/s, recompute {r.recompute}, "
             f"micro-batch {r.micro_batch}" for k, r in best.items()]  # fmt: skip
    if "bf16" in best and best["bf16"].mfu is not None:
        lines.append(f"bf16 MFU {best['bf16'].mfu:.1%}; the mark is 55 %")
    if len(best) == 2:
        ratio = best["float8"].tokens_per_second / best["bf16"].tokens_per_second
        lines.append(f"float8 / bf16: {ratio:.2f}; the mark is 1.3")
    return lines


def write(path: Path | None, facts: dict[str, Any], found: list[Result], out: list[str]) -> None:
    if path is not None:
        values = {"facts": facts, "results": [asdict(r) for r in found], "left_out": out}
        path.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
