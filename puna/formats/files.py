"""Files on disk: mapped to read, written beside their final name and renamed when whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_MAX_SHOWN = 1000  # characters; a damaged length can make a name of a whole file


def printable(text: str) -> str:
    """Text from a file, fit for one line of an error: what does not print becomes an escape."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_MAX_SHOWN])
    return shown if len(text) <= _MAX_SHOWN else shown + "..."


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped read-only; ValueError if it is empty."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)


@contextlib.contextmanager
def atomic_file(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` only once it is complete.

    Raises ValueError if `path` exists and may not be overwritten, or is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file to write")
    with _renamed_when_whole(path, overwrite) as temporary, open(temporary, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill that appears at `path` only once it is complete.

    Raises ValueError if `path` exists and may not be overwritten, or is a file.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; give the name of a folder to write")
    with _renamed_when_whole(path, overwrite) as temporary:
        temporary.mkdir()
        yield temporary


@contextlib.contextmanager
def _renamed_when_whole(path: Path, overwrite: bool) -> Iterator[Path]:
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already; remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield temporary
        if path.is_dir():
            # A directory cannot be replaced in one step: move the old one aside first.
            old = path.with_name(f"{temporary.name}.old")
            path.rename(old)
            try:
                temporary.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
