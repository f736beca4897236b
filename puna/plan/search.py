"""The fastest layout of a run on a cluster, by trying all of them that training would take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from puna.config import ModelConfig
from puna.plan.compute import Kernels, head_seconds, layer_seconds
from puna.plan.layout import Layout, check_model
from puna.plan.memory import RECOMPUTE, Memory, rank_memory
from puna.plan.step import StepTime, drag, step_time, talk_seconds

# Of a device's memory, what is left to the driver, its libraries' buffers and gaps; *ours*.
_RESERVED = 0.08
# How far a batch may be from what was asked for, so that it divides over the ranks; *ours*.
_OFF = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be planned: `model` in batches of `batch_size` windows.

    `loss_chunk` of how many positions there are logits at once; `recompute`, `layout` and
    `micro_batch_size` are chosen where they are None.
    """

    model: ModelConfig
    kernels: Kernels
    batch_size: int
    loss_chunk: int = 1024
    recompute: str | None = None
    layout: Layout | None = None
    micro_batch_size: int | None = None

    @property
    def usable_memory(self) -> float:
        """Bytes of a device that training may fill."""
        return self.kernels.cluster.device.memory_bytes * (1 - _RESERVED)


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to do a run: `batch_size` windows a step, `micro_batch_size` of a rank at once."""

    layout: Layout
    batch_size: int
    micro_batch_size: int
    recompute: str

    @property
    def num_pieces(self) -> int:
        return self.batch_size // self.layout.num_data_ranks // self.micro_batch_size


@dataclass(frozen=True, slots=True)
class Found:
    """A choice with what it needs and how long its step takes."""

    choice: Choice
    memory: Memory
    step: StepTime
    tokens_per_second: float


def choices(run: Run) -> Iterator[Choice]:
    """Every way that the rules of `layout` allow on all devices of the cluster."""
    kinds = RECOMPUTE if run.recompute is None else (run.recompute,)
    for layout in _layouts(run):
        batch_size = nearest_batch(run.batch_size, layout)
        if batch_size is None:
            continue
        share = batch_size // layout.num_data_ranks
        sizes = _divisors(share) if run.micro_batch_size is None else [run.micro_batch_size]
        for micro in sizes:
            # As many pieces as stages, at least: `layout.check_pieces`.
            if share % micro == 0 and share // micro >= layout.pp:
                for kind in kinds:
                    yield Choice(layout, batch_size, micro, kind)


def _layouts(run: Run) -> Iterator[Layout]:
    count = run.kernels.cluster.count
    if run.layout is not None:
        if run.layout.num_ranks == count and _fits(run.model, run.layout):
            yield run.layout
        return
    for tp in _divisors(count):
        for cp in _divisors(count // tp):
            for pp in _divisors(count // tp // cp):
                if _fits(run.model, Layout(pp=pp, cp=cp, tp=tp)):
                    rest = count // tp // cp // pp
                    for fsdp in _divisors(rest):
                        yield Layout(pp=pp, dp=rest // fsdp, fsdp=fsdp, cp=cp, tp=tp)


def _fits(model: ModelConfig, layout: Layout) -> bool:
    try:
        check_model(layout, model)
    except ValueError:
        return False
    return True


def nearest_batch(wanted: int, layout: Layout) -> int | None:
    """The number of windows nearest to `wanted` that divides over the ranks; None where that is
    more than a tenth off."""
    ranks = layout.num_data_ranks
    found = max(ranks, round(wanted / ranks) * ranks)
    return found if abs(found - wanted) <= _OFF * wanted else None


def _divisors(number: int) -> list[int]:
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def evaluate(run: Run, choice: Choice, memory: Memory) -> Found:
    """How long a choice's step takes."""
    step = step_time(
        run.model, run.kernels, choice.layout, micro_batch_size=choice.micro_batch_size,
        num_pieces=choice.num_pieces, recompute=choice.recompute,
    )  # fmt: skip
    tokens = choice.batch_size * run.model.context_length
    return Found(choice, memory, step, tokens / step.total / run.kernels.cluster.count)


def needed(run: Run, choice: Choice) -> Memory:
    return rank_memory(
        run.model, choice.layout, micro_batch_size=choice.micro_batch_size,
        num_pieces=choice.num_pieces, recompute=choice.recompute, loss_chunk=run.loss_chunk,
    )  # fmt: skip


def least_seconds(run: Run, choice: Choice) -> float:
    """What a choice's step takes if no weights or gradients are sent: a bound below `step_time`,
    quickly had."""
    layout = choice.layout
    shape = (choice.micro_batch_size, layout.tp, layout.cp)
    layer = layer_seconds(run.kernels, run.model, *shape, choice.recompute)
    layers = run.model.num_layers // layout.pp
    cluster = run.kernels.cluster
    talk = sum(talk_seconds(cluster, run.model, *shape, choice.recompute))
    piece = layers * (layer.forward + layer.backward + layer.again + talk)
    piece += head_seconds(run.kernels, run.model, *shape)
    return (choice.num_pieces + layout.pp - 1) * piece * drag(cluster.count)


def search(run: Run) -> Found | None:
    """The fastest choice that fits; None where none does.

    None is left out but those whose bound (`least_seconds`) says that another is faster.
    """
    best: Found | None = None
    count = run.kernels.cluster.count
    for choice in choices(run):
        if best is not None:
            tokens = choice.batch_size * run.model.context_length
            if tokens / least_seconds(run, choice) / count <= best.tokens_per_second:
                continue
        memory = needed(run, choice)
        if memory.peak > run.usable_memory:
            continue
        found = evaluate(run, choice, memory)
        if best is None or found.tokens_per_second > best.tokens_per_second:
            best = found
    return best


def least_memory(run: Run) -> tuple[Choice, Memory] | None:
    """The choice that needs least; None where no choice is allowed.

    Fewer windows at once never need more.
    """
    smallest = dataclasses.replace(run, micro_batch_size=run.micro_batch_size or 1)
    needs = ((choice, needed(run, choice)) for choice in choices(smallest))
    return min(needs, key=lambda need: need[1].peak, default=None)
