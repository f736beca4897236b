"""A profile of some steps, by torch's profiler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROWS = 40  # of the table


@dataclass(frozen=True, slots=True)
class Window:
    """The steps to profile, counted from 1."""

    first: int
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Window:
        """Of "STEP" or "STEP:COUNT"; ValueError for anything else."""
        numbers = text.split(":")
        if len(numbers) > 2 or not all(n.isascii() and n.isdigit() and int(n) for n in numbers):
            raise ValueError(f"--profile is a step and perhaps a number, such as 20:3, not {text}")
        return cls(*map(int, numbers))

    def check(self, steps: int) -> None:
        """ValueError where a run of so many steps has none of these."""
        if self.first > steps:
            raise ValueError(f"--profile {self.first}: the run ends after step {steps}")

    @property
    def last(self) -> int:
        return self.first + self.count - 1


class Profile:
    """Writes into `folder` what this process did in the window's steps: a trace for
    chrome://tracing or ui.perfetto.dev, and a table of the operators that took most."""

    def __init__(self, folder: Path, window: Window) -> None:
        self._folder, self._window = folder, window
        self._profiler: Any = None
        self._first = self._step = 0

    def begin(self, step: int) -> None:
        """Before a step; profiling starts with the first of the window, or of what is left."""
        self._step = step
        if self._profiler is None and self._window.first <= step <= self._window.last:
            import torch
            from torch.profiler import ProfilerActivity, profile

            self._first = step
            kinds = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=kinds, record_shapes=True)
            with _silent():
                self._profiler.start()

    def end(self) -> None:
        """After a step; the last of the window is followed by writing."""
        if self._step == self._window.last:
            self.close()

    def close(self) -> None:
        """Ends profiling where it is, and writes what there is."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        with _silent():
            profiler.stop()
        self._folder.mkdir(exist_ok=True)
        name = f"steps-{self._first}-{self._step}"
        profiler.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        averages = profiler.key_averages()
        by = "self_cpu_time_total"
        if any(event.self_device_time_total for event in averages):
            by = "self_cuda_time_total"
        table = averages.table(sort_by=by, row_limit=_ROWS)
        (self._folder / f"{name}.txt").write_text(table + "\n", encoding="utf-8")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what the profiler's C++ says of itself on standard error, amid the progress."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
