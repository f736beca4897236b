"""How training is going: two lines that change in a terminal, lines one after another elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

_Begin = Callable[[int], None]
_Take = Callable[[dict[str, Any]], None]
_Check = Callable[[int, int], None]
_EVERY = 10.0  # seconds between plain lines
_RECENT = 20  # steps whose speed tells the time that is left
_WEIGHT = 0.95  # of what was, in the smoothed loss


class Training:
    """What is known of a run from its records. `clock` gives seconds."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self._clock = total, clock
        self.step = 0
        self._ends: deque[tuple[int, float]] = deque(maxlen=_RECENT + 1)
        self._loss = self._mass = 0.0
        self._last: dict[str, Any] = {}
        self._before = "the first step"
        self._held_out: float | None = None
        self._spoken = -_EVERY

    def check(self, done: int, total: int) -> None:
        """So much of the data is checked before the run begins."""
        self._before = f"checking the data: {done} of {total} shards"

    def start(self, step: int) -> None:
        """Begins, or goes on, after `step` steps."""
        self.step, self._before = step, "the first step"
        self._ends.append((step, self._clock()))

    def add(self, record: dict[str, Any]) -> None:
        if record["step"] <= self.step:  # the run went back to a checkpoint
            self._ends.clear()
        self.step, self._last = record["step"], record
        self._ends.append((self.step, self._clock()))
        self._loss = _WEIGHT * self._loss + (1 - _WEIGHT) * record["loss"]
        self._mass = _WEIGHT * self._mass + (1 - _WEIGHT)
        for measure in ("held_out_loss", "held_out_reward"):
            self._held_out = record.get(measure, self._held_out)

    @property
    def left(self) -> float | None:
        """Seconds to the end at the pace of the last steps, with all that came between them."""
        if len(self._ends) < 2:
            return None
        (first, begun), (last, now) = self._ends[0], self._ends[-1]
        return (now - begun) / (last - first) * (self.total - last)

    def due(self) -> bool:
        """Whether a plain line is to be printed of the last record."""
        first_or_last = self._spoken < 0 or self.step == self.total
        now = self._clock()
        evaluated = {"held_out_loss", "held_out_reward"} & self._last.keys()
        if first_or_last or evaluated or now - self._spoken >= _EVERY:
            self._spoken = now
            return True
        return False

    def figures(self) -> str:
        """Smoothed loss, or reward and KL divergence where there is a reward; that or the loss held
        out; speed, share of the device's best, memory."""
        if not self._last:
            return self._before
        parts = [f"loss {self._loss / self._mass:.3f}"]
        if "reward" in self._last:
            parts = [f"reward {self._last['reward']:.3f}", f"KL {self._last['kl']:.3g}"]
        if self._held_out is not None:
            parts.append(f"held out {self._held_out:.3f}")
        parts.append(f"{self._last['tokens_per_second']:,.0f} tokens/s")
        if "mfu" in self._last:
            parts.append(f"MFU {self._last['mfu']:.1%}")
        else:
            parts.append(arithmetic(self._last["tflops"]))
        parts.append(f"{self._last['memory'] / 1e9:.1f} GB")
        return "  ".join(parts)

    def time_left(self) -> str:
        if self.step >= self.total:
            return "done"
        return "" if self.left is None else f"{timedelta(seconds=round(self.left))} left"


def arithmetic(tflops: float) -> str:
    """Of one process, in a unit that can be read."""
    return f"{tflops:.3g} TFLOP/s" if tflops >= 0.1 else f"{tflops * 1e3:.3g} GFLOP/s"


@contextlib.contextmanager
def training_bar(
    total: int, *, shown: bool = True, console: Console | None = None
) -> Iterator[tuple[_Begin, _Take, _Check]]:
    """Shows a run of `total` steps: (begin after so many steps, one record is there, so much of the
    data is checked)."""
    console = console or Console(stderr=True)
    training = Training(total)
    bar = Progress(
        TextColumn("step {task.completed:,}/{task.total:,}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
        expand=True,
    )
    task = bar.add_task("", total=total, left="")

    def lines() -> Group:
        bar.update(task, completed=training.step, left=training.time_left())
        figures = Text(training.figures(), no_wrap=True, overflow="ellipsis")
        return Group(bar.get_renderable(), figures)

    def add(record: dict[str, Any]) -> None:
        training.add(record)
        if shown and not console.is_terminal and training.due():
            line = f"step {training.step}/{total}  {training.figures()}  {training.time_left()}"
            console.print(line, highlight=False, soft_wrap=True)

    with contextlib.ExitStack() as stack:
        if shown and console.is_terminal:
            stack.enter_context(Live(get_renderable=lines, console=console, refresh_per_second=4))
        yield training.start, add, training.check


@contextlib.contextmanager
def told(
    steps: int,
    sinks: contextlib.AbstractContextManager[tuple[_Begin, _Take]],
    *,
    shown: bool = True,
) -> Iterator[tuple[dict[str, Any], _Check]]:
    """What the function of a stage is given to tell of its run, to a bar and to `sinks`; and what
    of how far its data are checked."""
    with training_bar(steps, shown=shown) as (start, advance, check), sinks as (begin, write):

        def on_start(step: int) -> None:
            start(step)
            begin(step)

        def on_record(record: dict[str, Any]) -> None:
            advance(record)
            write(record)

        yield {"on_start": on_start, "on_record": on_record, "on_event": say_event}, check


def say_event(event: dict[str, Any]) -> None:
    """A line about a batch that was skipped, or a rollback (`train.log`)."""
    if event["event"] == "skip":
        line = f"after step {event['step']}: skipped a batch: {event['reason']}"
    else:
        line = (
            f"went back to step {event['step']}, and on with later data, {event['left_out']} "
            f"batches left out: {event['reason']}"
        )
    click.echo(line, err=True)
