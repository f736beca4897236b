"""How a checkpoint comes to be: in a hidden folder beside its name, flushed, renamed when whole.

A kill at any moment leaves the checkpoints from before as they were, and perhaps a hidden folder
that the next save removes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from puna.formats.manifest import MANIFEST, Manifest
from puna.formats.run_folder import checkpoint_path, steps_saved


class CheckpointError(ValueError):
    """A checkpoint that could not be written or read. All ranks raise it alike."""


def begin(path: Path) -> Path:
    """The empty folder to fill; what killed saves left behind is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".step-*"):
        shutil.rmtree(left)
    partial(path).mkdir()
    return partial(path)


def partial(path: Path) -> Path:
    """Where the checkpoint `path` is written."""
    return path.with_name(f".{path.name}.partial")


def commit(path: Path, manifest: Manifest, *, keep: int) -> None:
    """Makes the filled folder the checkpoint, and drops all but the newest `keep` up to it.

    Its files have been flushed to the disk. Later checkpoints are dropped too: they were damaged,
    or this step would have come after them.
    """
    folder = partial(path)
    with open(folder / MANIFEST, "x", encoding="utf-8") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    flush_folder(folder)
    if path.is_dir():
        _remove(path)
    folder.rename(path)
    flush_folder(path.parent)
    run, step = path.parent.parent, int(path.name[5:])
    flush_folder(run)
    saved = steps_saved(run)
    kept = [number for number in saved if number <= step][-keep:]
    for number in saved:
        if number not in kept:
            _remove(checkpoint_path(run, number))


def discard(path: Path) -> None:
    """Removes what there is of a checkpoint that could not be written."""
    shutil.rmtree(partial(path), ignore_errors=True)


def unsaved(path: Path, error: OSError, rank: int | None = None) -> CheckpointError:
    """What to say where a checkpoint could not be written."""
    by = "" if rank is None else f" by rank {rank}"
    older = steps_saved(path.parent.parent)
    last = f"step-{older[-1]:08} is whole" if older else "there is no earlier one"
    return CheckpointError(
        f"the checkpoint {path} could not be written{by}: {error.strerror or error}; {last}. Make "
        "room or mend the disk there, then go on with --resume"
    )


def flush_folder(folder: Path) -> None:
    """Has the disk know the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Removes a checkpoint, which no longer has its name while it is half gone."""
    hidden = path.with_name(f".{path.name}.removed")
    path.rename(hidden)
    shutil.rmtree(hidden)
