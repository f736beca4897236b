"""Progress bars on standard error, silent where that is no terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from puna.formats.checkpoint import Checkpoint

if TYPE_CHECKING:
    from puna.data.pipeline.build import Watch
    from puna.data.pipeline.steps import Phase


@contextlib.contextmanager
def bar(label: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar over `total` things (unknown if None); call the yielded function for each one done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


@contextlib.contextmanager
def amount_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over an amount; call the yielded function with each part of it that is done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


@contextlib.contextmanager
def download_bar(label: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar over bytes, with their speed; call the yielded function with each number that came."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
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
def phase_bar(folder: Path) -> Iterator[Watch]:
    """A bar a phase of a data build: tasks done, documents read; for `data.pipeline.build`.

    Tasks work in other processes, which count their documents in files; those are looked at twice
    a second.
    """
    # The stream as it is now: a phase may put another in its place meanwhile.
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[documents]:,} documents"),
        TimeElapsedColumn(),
    )

    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        @contextlib.contextmanager
        def watch(phase: Phase, number: int, count: int) -> Iterator[None]:
            label = f"{number}/{count} {phase.name}"
            task = progress.add_task(label, total=phase.tasks, documents=0)
            done = threading.Event()

            def look() -> None:
                progress.update(
                    task,
                    completed=phase.tasks - phase.unfinished(folder),
                    documents=phase.documents_read(folder),
                )

            def look_on() -> None:
                while not done.wait(0.5):
                    look()

            looking = threading.Thread(target=look_on, daemon=True)
            looking.start()
            try:
                yield
            finally:
                done.set()
                looking.join()
                look()
            if not console.is_terminal:
                console.print(f"{label}: done", highlight=False)

        yield watch
