"""Files on disk: read piece by piece, written beside their final name and renamed when whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from puna.formats.errors import FormatError


class DataFile:
    """An open file of which pieces are read when asked for; nothing is mapped or kept.

    So memory is what the caller holds, and a file that shrinks meanwhile is an error, not a crash.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        self.size = found.st_size
        times = f"{found.st_mtime_ns} {found.st_ctime_ns}"  # the second cannot be set back
        self._identity = f"{found.st_dev}:{found.st_ino} {self.size} {times}"

    def identity(self, begin: int, end: int) -> str:
        """What bytes [begin, end) are known by: another text once they may have changed."""
        return f"{self._identity} {begin}-{end}"

    def read(self, begin: int, end: int, field: str = "data") -> NDArray[np.uint8]:
        """Bytes [begin, end), in memory of their own; FormatError if the file ends before."""
        if not 0 <= begin <= end <= self.size:
            raise FormatError(self.path, field, begin, f"ends at {end} of a file of {self.size}")
        out = np.empty(end - begin, np.uint8)
        at = 0
        while at < len(out):
            count = os.preadv(self._descriptor, [out[at:].data], begin + at)
            if count == 0:
                raise FormatError(self.path, field, begin + at, "the file was cut off meanwhile")
            at += count
        return out


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
