"""What is seen of a run besides its loss: speed, memory, statistics of layers, a profile."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from puna.plan.counts import flops_per_token
from puna.plan.hardware import peak_tflops
from puna.train.profile import Profile, Window
from puna.train.statistics import Statistics

if TYPE_CHECKING:
    from puna.train.contracts import Trainee
    from puna.train.log import Record
    from puna.train.loop import Settings


class Watch:
    """Completes the record of each step; every rank has one and calls it alike.

    - tokens_per_second: of all ranks; tflops: of one, on average, as `flops` counts them;
      mfu: that over the device's peak in the type that the blocks multiply in, where it is known
    - memory: bytes of the rank that used most so far, on a GPU of tensors, else of the process
    - seconds: waiting for data; forward, backward and clipping ("passes"); the optimizer's update.
      A GPU finishes that while the next step begins, which then counts it.
    - statistics: every `settings.statistics_every` steps (`statistics.Statistics`)
    """

    def __init__(
        self,
        trainee: Trainee,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        profile: Profile | None,
    ) -> None:
        self._trainee, self._profile = trainee, profile
        self._flops = flops_per_token(trainee.network.config)
        kind = "fp8" if settings.float8 else settings.dtype
        self._peak = peak_tflops(name_of(trainee.device), kind)
        self._statistics = Statistics(trainee, optimizer, settings)
        optimizer.register_step_pre_hook(self._before_update)
        self._begun = self._at = 0.0
        self._seconds: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """Before the data of a step, counted from 1, are fetched."""
        if self._profile is not None:
            self._profile.begin(step)
        self._statistics.begin(step)
        self._seconds = {}
        self._begun = self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        """The time since the last of these calls went into `name`."""
        now = time.perf_counter()
        self._seconds[name] = now - self._at
        self._at = now

    def end(self, num_tokens: int, grad_norm: float) -> Record:
        """After the update of a step on `num_tokens`, all ranks': what to add to its record."""
        self.lap("update")
        speed = num_tokens / (self._at - self._begun)
        tflops = speed * self._flops / self._trainee.num_ranks / 1e12
        record: Record = {"tokens_per_second": speed, "tflops": tflops}
        if self._peak is not None:
            record["mfu"] = tflops / self._peak
        record["memory"] = round(self._trainee.largest(used_memory(self._trainee.device)))
        record["seconds"] = self._seconds
        record |= self._statistics.end(grad_norm)
        if self._profile is not None:
            self._profile.end()
        return record

    def _before_update(self, *_: Any) -> None:
        self.lap("passes")


@contextlib.contextmanager
def watching(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    run: Path,
    profile: Window | None,
) -> Iterator[Watch]:
    """A watch over a run; a profile, of the process that leads, goes to `run`/profile."""
    profiled = Profile(run / "profile", profile) if profile and trainee.leads else None
    try:
        yield Watch(trainee, optimizer, settings, profiled)
    finally:
        if profiled is not None:
            profiled.close()


def used_memory(device: torch.device) -> int:
    """The most bytes that were in use at once: a GPU's of tensors, else the process's own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def name_of(device: torch.device) -> str:
    """What a GPU calls itself; the type of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
