"""Progress bars on standard error, silent where that is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from puna.formats.checkpoint import Checkpoint


@contextlib.contextmanager
def bar(label: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar over `total` things (unknown if None); call the yielded function for each one done."""
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


@contextlib.contextmanager
def download_bar(label: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar over bytes, with their speed; call the yielded function with each number that came."""
    console = Console(stderr=True)
    columns = (
        TextColumn(label),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=num_bytes)
        yield lambda count: progress.advance(task, count)


@contextlib.contextmanager
def loading_bar(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """The checkpoint, with a bar from the first matrix that is read of it to the last."""
    matrices = [name for name, tensor in checkpoint.tensors.items() if len(tensor.shape) > 1]
    columns = (TextColumn("loading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("", total=len(matrices))

    def advance(name: str) -> None:
        progress.start()
        progress.advance(task)

    watched = {name: checkpoint.tensors[name].watched(advance, name) for name in matrices}
    try:
        yield replace(checkpoint, tensors={**checkpoint.tensors, **watched})
    finally:
        progress.stop()


@contextlib.contextmanager
def training_bar(
    total: int, *, shown: bool = True
) -> Iterator[tuple[Callable[[int], None], Callable[[dict[str, Any]], None]]]:
    """A bar over optimizer steps with loss and tokens/s: (begin at a step, one record done)."""
    console = Console(stderr=True)
    columns = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    disable = not (shown and console.is_terminal)
    with Progress(*columns, console=console, disable=disable) as progress:
        task = progress.add_task("", total=total, loss="-", speed="-")

        def start(step: int) -> None:
            progress.reset(task, completed=step, loss="-", speed="-")

        def advance(record: dict[str, Any]) -> None:
            speed = f"{record['tokens_per_second']:,.0f}"
            progress.update(
                task, completed=record["step"], loss=f"{record['loss']:.3f}", speed=speed
            )
            if not console.is_terminal and (record["step"] == total or record["step"] % 50 == 0):
                console.print(
                    f"step {record['step']}/{total}  loss {record['loss']:.4f}  {speed} tokens/s",
                    highlight=False,
                )

        yield start, advance
