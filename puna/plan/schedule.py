"""A step of training in time: which piece runs where and when, event by event.

Schedules of a pipeline of p stages with m pieces a step (arXiv 2104.04473, figures 3 and 4): the
bubble of equal stages is (p - 1) / (m + p - 1) of the time, with v chunks a stage
(p - 1) / (v m + p - 1). Layers whose weights are gathered before they run, and whose gradients are
scattered behind them, as FSDP does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Task:
    """The forward or backward pass of a piece through chunk `chunk` of a stage."""

    backward: bool
    stage: int
    chunk: int
    piece: int


def _gpipe(stage: int, stages: int, pieces: int, chunks: int) -> list[Task]:
    every = [(chunk, piece) for chunk in range(chunks) for piece in range(pieces)]
    forward = [Task(False, stage, chunk, piece) for chunk, piece in every]
    return forward + [Task(True, stage, chunk, piece) for chunk, piece in reversed(every)]


def _1f1b(stage: int, stages: int, pieces: int, chunks: int) -> list[Task]:
    return _alternating(stage, stages, pieces, chunks, ahead=stages - stage - 1)


def _interleaved(stage: int, stages: int, pieces: int, chunks: int) -> list[Task]:
    if pieces % stages:
        raise ValueError(f"interleaved stages need pieces in multiples of {stages}, not {pieces}")
    ahead = 2 * (stages - stage - 1) + (chunks - 1) * stages
    return _alternating(stage, stages, pieces, chunks, ahead)


def _alternating(stage: int, stages: int, pieces: int, chunks: int, ahead: int) -> list[Task]:
    """`ahead` forward passes, then one of each kind in turn, then the backward passes left."""
    total = pieces * chunks
    forward, backward = [], []
    for number in range(total):
        rounds, rest = divmod(number, stages * chunks)
        chunk = rest // stages if chunks > 1 else 0
        piece = rounds * stages + rest % stages if chunks > 1 else number
        forward.append(Task(False, stage, chunk, piece))
        backward.append(Task(True, stage, chunks - 1 - chunk, piece))
    ahead = min(ahead, total)
    order = forward[:ahead]
    for number in range(total - ahead):
        order += [forward[ahead + number], backward[number]]
    return order + backward[total - ahead :]


ORDERS: dict[str, Callable[[int, int, int, int], list[Task]]] = {
    "gpipe": _gpipe,
    "1f1b": _1f1b,
    "interleaved": _interleaved,
}


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each task of a step begins and ends, seconds (..., as the durations have before)."""

    begins: dict[Task, Seconds]
    ends: dict[Task, Seconds]
    stages: int

    @property
    def total(self) -> Seconds:
        """From the first task's beginning to the last one's end."""
        last: Seconds = np.max(np.stack(list(self.ends.values())), axis=0)
        return last

    @property
    def bubble(self) -> Seconds:
        """The share of all stages' time in which they wait."""
        busy = sum((self.ends[t] - self.begins[t] for t in self.ends), np.zeros(()))
        return 1 - busy / (self.stages * self.total)


def run_pipeline(
    schedule: str,
    forward: Seconds,
    backward: Seconds,
    pieces: int,
    *,
    chunks: int = 1,
    transfer: float = 0.0,
) -> Timeline:
    """Runs a step's tasks, each as soon as its stage is free and what it needs is there.

    `forward` and `backward` (..., stages): seconds of a piece in all of a stage; leading dimensions
    are replicas, or steps, which are independent. `transfer` seconds from a stage to the next.
    ValueError for what the schedule cannot do.
    """
    if schedule not in ORDERS:
        raise ValueError(f"no schedule '{schedule}'; there are: {', '.join(ORDERS)}")
    stages = forward.shape[-1]
    if pieces < 1 or chunks < 1 or (chunks > 1 and schedule == "1f1b"):
        raise ValueError(f"{schedule} cannot run {pieces} pieces in {chunks} chunks a stage")
    orders = [ORDERS[schedule](stage, stages, pieces, chunks) for stage in range(stages)]
    seconds = {False: forward / chunks, True: backward / chunks}
    begins: dict[Task, Seconds] = {}
    ends: dict[Task, Seconds] = {}
    free: list[Seconds] = [np.zeros(forward.shape[:-1]) for _ in range(stages)]
    at = [0] * stages
    while len(ends) < 2 * stages * pieces * chunks:
        moved = False
        for stage, order in enumerate(orders):
            while at[stage] < len(order):
                task = order[at[stage]]
                needed, over = _needed(task, stages, chunks)
                if needed is not None and needed not in ends:
                    break
                ready = ends[needed] + over * transfer if needed is not None else free[stage]
                begins[task] = np.maximum(free[stage], ready)
                ends[task] = free[stage] = begins[task] + seconds[task.backward][..., stage]
                at[stage] += 1
                moved = True
        assert moved, "each stage waits for another"
    return Timeline(begins, ends, stages)


def _needed(task: Task, stages: int, chunks: int) -> tuple[Task | None, int]:
    """The task whose result this one starts from, and how many times it is sent on the way."""
    place = task.chunk * stages + task.stage
    if task.backward and place == stages * chunks - 1:
        return Task(False, task.stage, task.chunk, task.piece), 0
    place += 1 if task.backward else -1
    if place < 0:
        return None, 0
    return Task(task.backward, place % stages, place // stages, task.piece), int(stages > 1)


def run_layers(
    compute: Sequence[float], gather: Sequence[float], scatter: Sequence[float]
) -> float:
    """Seconds of layers in a row whose collectives run beside them, in a stream of their own.

    A layer waits for its `gather`; the next layer's runs meanwhile, no other before (two layers'
    weights are there at once). Its `scatter` waits for it, and comes after the gather ahead.
    """
    stream = done = 0.0
    gathered = gather[0] if len(gather) else 0.0
    stream = gathered
    behind = 0.0  # of the layer before, still to be scattered
    for number, seconds in enumerate(compute):
        begin = max(done, gathered)
        if number + 1 < len(compute):
            gathered = stream = max(stream, begin) + gather[number + 1]
        if behind:
            stream = max(stream, done) + behind
        done = begin + seconds
        behind = scatter[number]
    return max(done, max(stream, done) + behind if behind else done)
