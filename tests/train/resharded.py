"""What each rank of the resharding test does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from puna.config import ModelConfig
from puna.parallel.fsdp import local
from puna.parallel.part import Options, take_part
from puna.parallel.place import take_place
from puna.plan.layout import Layout
from puna.tokenizer.sentencepiece_model import read_model
from puna.train.checkpoints import RunState, restore
from puna.train.loop import Settings, make_optimizer
from puna.train.several import Several

# Feed-forward rows do not divide by four ranks that also share the data.
CONFIG = ModelConfig(40, 4, 4, 4, 44, vocab_size=420, context_length=32)
SETTINGS = Settings(steps=4, warmup_steps=1)
KEYS = ("step", "exp_avg", "exp_avg_sq")


def whole(name: str, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers that only this weight, or its moment, has at each place."""
    if key == "step":
        return torch.tensor([7.0])
    seed = int.from_bytes(f"{key}.{name}".encode()[-6:], "big") % (1 << 31)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def make(layout: Layout, dtype: str) -> tuple[Several, torch.optim.Optimizer]:
    part = take_part(CONFIG, take_place(layout, "cpu"), Options(dtype=dtype))
    stage: Any = None
    return Several(part, stage), make_optimizer(part.network, SETTINGS)


@torch.no_grad()
def forget(trainee: Several, optimizer: torch.optim.Optimizer) -> None:
    """What is found afterwards was read."""
    optimizer.state.clear()
    for weight in trainee.network.parameters():
        local(weight).zero_()


def set_state(trainee: Several, optimizer: torch.optim.Optimizer) -> None:
    """What a whole network would have, cut as this rank's."""
    shapes = CONFIG.tensor_shapes()
    with torch.no_grad():
        for name, weight in trainee.network.named_parameters():
            for key in ("weight", *KEYS):
                box = trainee.box(weight)
                full = whole(name, key, shapes[name], weight.dtype)
                if key == "step":
                    optimizer.state[weight][key] = full[0]
                    continue
                into = weight if key == "weight" else torch.zeros_like(weight)
                ends = (b + n for b, n in zip(box.begin, box.shape, strict=True))
                cut = tuple(slice(b, e) for b, e in zip(box.begin, ends, strict=True))
                local(into).copy_(full[cut])
                if key != "weight":
                    optimizer.state[weight][key] = into


def check_state(trainee: Several, optimizer: torch.optim.Optimizer) -> None:
    shapes = CONFIG.tensor_shapes()
    for name, weight in trainee.network.named_parameters():
        found = {"weight": weight.detach(), **optimizer.state[weight]}
        for key, tensor in found.items():
            expected = whole(name, key, shapes[name], weight.dtype)
            if key == "step":
                assert tensor.ndim == 0 and tensor.item() == 7
                continue
            assert np.array_equal(tensor.full_tensor().numpy(), expected.numpy()), (name, key)


def bytes_read() -> int:
    """That this process has asked files for so far (Linux)."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


def main(folder: Path, layouts: list[str], dtype: str) -> None:
    torch.set_num_threads(1)
    made = {line: make(Layout.parse(line), dtype) for line in layouts}
    vocabulary = read_model((folder / "tokenizer.model").read_bytes())
    for line, (trainee, optimizer) in made.items():
        set_state(trainee, optimizer)
        state = RunState(step=3, tokens=123)
        run = folder / line
        trainee.save(run, optimizer, state, vocabulary, keep=1, wait=True)
    runs = [*(folder / line for line in layouts), folder / "single"]
    for line in layouts:
        for run in runs:
            if not run.is_dir():
                continue
            # One trainee a layout: each has process groups, whose threads stay.
            trainee, optimizer = made[line]
            forget(trainee, optimizer)
            assert restore(run, trainee, optimizer) == RunState(3, 123)
            check_state(trainee, optimizer)
    dist.barrier()
    dist.destroy_process_group()
