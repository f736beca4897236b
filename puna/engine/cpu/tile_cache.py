"""Packed weights of large models, kept in files that the next start maps instead of packing again.

A file is a header and, from byte `_DATA` on, the packed weights. The header says by which key the
weights are known, and a checksum of each of them; all are checked before they are used, which also
brings them into memory. So a file need not have reached the disk when it gets its name: what a
crash damaged is noticed, and packed again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from puna.kernels.step import physical_cores
from puna.kernels.tiles import Array, checksum

LEAST = 256 << 20  # packed bytes from which on a model is kept: smaller ones are packed as fast
_SHARE = 4  # all files together take one part in so many of the disk space that is left for them
_MAGIC = b"PUNATILE"
_DATA = 1 << 21  # where huge pages can begin; what the header leaves of it takes no disk
_DIGEST = 16
_SUFFIX, _PARTIAL = ".tiles", ".partial"

Key = dict[str, Any]
Spans = Sequence[tuple[int, int]]

_log = logging.getLogger("puna")


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of the cache: the model whose weights it has, and when they were last used (ns)."""

    path: Path
    model: str
    version: str
    num_bytes: int
    used: int


class TileCache:
    """Packed weights in a folder, which processes may share.

    Models whose weights take less than `least` bytes are not kept; the files take up to `most`
    bytes (None: a quarter of what would be free without them), those not used for longest go
    first. What goes wrong in the folder is logged and costs time, nothing else.
    """

    def __init__(self, folder: Path, *, least: int = LEAST, most: int | None = None) -> None:
        self.folder, self.least, self.most = folder, least, most

    def get(self, library: ctypes.CDLL, key: Key, spans: Spans) -> Array | None:
        """The weights of `key`, read-only; None where they are not here, or damaged.

        `spans` are the bytes [begin, end) of each that has a checksum, in order.
        """
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                found = _header(file)
                if found is None or found["key"] != key:
                    raise ValueError("its header is damaged")
                size = _DATA + spans[-1][1]
                if os.fstat(file.fileno()).st_size != size:
                    raise ValueError(f"it is not {size} bytes long")
                memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            with contextlib.suppress(AttributeError, OSError):  # not every system can
                memory.madvise(mmap.MADV_HUGEPAGE)
            data = np.frombuffer(memory, np.uint8)[_DATA:]
            with ThreadPoolExecutor(physical_cores()) as pool:
                pieces = [data[begin:end] for begin, end in spans]
                sums = list(pool.map(partial(checksum, library), pieces))
            if sums != found["sums"]:
                raise ValueError("its weights are not those that were written")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("packed weights in %s cannot be used (%s); packing again", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def put(
        self, library: ctypes.CDLL, key: Key, spans: Spans, packed: Iterable[Array]
    ) -> Array | None:
        """Keeps the weights of `key`, one after another as they come, and gives all as `get`.

        None, some of `packed` taken, where there is no room or writing fails.
        """
        path = self._path(key)
        partial_path = self.folder / f".{path.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(spans[-1][1], key["version"])
            with open(partial_path, "xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # tells those who clean up that it is being made
                sums = []
                for (begin, _), data in zip(spans, packed, strict=True):
                    sums.append(checksum(library, data))
                    file.seek(_DATA + begin)
                    file.write(data.data)
                text = json.dumps({"key": key, "sums": sums}).encode()
                head = hashlib.blake2b(text, digest_size=_DIGEST).digest()
                head = _MAGIC + len(text).to_bytes(8, "little") + head + text
                if len(head) > _DATA:
                    raise OSError(errno.EFBIG, f"a header of {len(head)} bytes is too large")
                file.seek(0)
                file.write(head)
                file.flush()
                partial_path.replace(path)
        except OSError as error:
            _log.warning("packed weights are not kept in %s: %s", self.folder, error.strerror)
            return None
        finally:
            with contextlib.suppress(OSError):
                partial_path.unlink()
        return self.get(library, key, spans)

    def files(self) -> list[Kept]:
        """What is here, that used last first."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                key = (_header(file) or {}).get("key", {})
                status = os.fstat(file.fileno())
                model, version = (str(key.get(field, "")) for field in ("model", "version"))
                size = status.st_blocks * 512
                found.append(Kept(path, model, version, size, status.st_mtime_ns))
        return sorted(found, key=lambda kept: -kept.used)

    def clear(self) -> int:
        """Deletes all; gives the bytes freed. Processes that run keep what they have mapped."""
        files = self.files()
        for kept in files:
            kept.path.unlink(missing_ok=True)
        self._remove_unfinished()
        return sum(kept.num_bytes for kept in files)

    def prune(self) -> int:
        """Deletes the weights of models that are no longer where they were; the bytes freed."""
        gone = [kept for kept in self.files() if not Path(kept.model).exists()]
        for kept in gone:
            kept.path.unlink(missing_ok=True)
        return sum(kept.num_bytes for kept in gone)

    def _path(self, key: Key) -> Path:
        text = json.dumps(key, sort_keys=True).encode()
        return self.folder / (hashlib.blake2b(text, digest_size=_DIGEST).hexdigest() + _SUFFIX)

    def _make_room(self, size: int, version: str) -> None:
        """Deletes what cannot be used again, then what was not for longest; ValueError if in vain.

        What another version of the code packed cannot.
        """
        self._remove_unfinished()
        self.prune()
        kept = self.files()
        for file in [file for file in kept if file.version != version]:
            file.path.unlink(missing_ok=True)
            kept.remove(file)
        taken = sum(file.num_bytes for file in kept)
        most = self.most
        if most is None:
            most = (shutil.disk_usage(self.folder).free + taken) // _SHARE
        if size > most:
            some = f"they take {size / 1e9:.1f} GB of the {most / 1e9:.1f} that may be"
            raise OSError(errno.ENOSPC, some)
        while taken + size > most:
            last = kept.pop()
            last.path.unlink(missing_ok=True)
            taken -= last.num_bytes

    def _remove_unfinished(self) -> None:
        """Deletes what processes that were killed left behind."""
        for path in self.folder.glob(f".*{_PARTIAL}"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _header(file: BinaryIO) -> Any:
    """What the header says; None where it is none, or damaged."""
    start = file.read(len(_MAGIC) + 8 + _DIGEST)
    length = int.from_bytes(start[len(_MAGIC) : len(_MAGIC) + 8], "little")
    if not start.startswith(_MAGIC) or length > _DATA:
        return None
    text = file.read(length)
    if hashlib.blake2b(text, digest_size=_DIGEST).digest() != start[len(_MAGIC) + 8 :]:
        return None
    return json.loads(text)
