"""The native code that this processor can run, loaded when first asked for.

Every function here has a definition in numpy (`puna.quantize`) and gives the same bytes. Python
holds no lock while they run, so that threads may share out the rows of a matrix.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from puna.kernels.compiling import FOLDER, digest, levels, library_path


def available() -> bool:
    """Whether there is native code; without, numpy does its work, many times slower."""
    return library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The best library for this processor, None where none was built (or from other sources)."""
    return next(reversed(libraries().values()), None)


@cache
def libraries() -> dict[str, ctypes.CDLL]:
    """The libraries that this processor can run, by instruction set, the best last."""
    found: dict[str, ctypes.CDLL] = {}
    best = 0
    for rank, level in enumerate(levels()):
        loaded = _load(level) if rank <= best else None
        if loaded is not None:
            found[level] = loaded
        if rank == 0 and loaded is not None:
            best = loaded.puna_level()
    return found


def _load(level: str) -> ctypes.CDLL | None:
    path = library_path(level, FOLDER)
    if not path.exists():
        return None
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError:  # built for another system
        return None
    loaded.puna_digest.restype = ctypes.c_char_p
    loaded.puna_largest.restype = ctypes.c_uint32
    return loaded if loaded.puna_digest() == digest().encode() else None


def largest(library: ctypes.CDLL, x: NDArray[np.float32]) -> float:
    """The largest magnitude in `x`, 0 of none; NaN counts as larger than infinity."""
    x = np.ascontiguousarray(x, np.float32)
    bits = library.puna_largest(_pointer(x), ctypes.c_int64(x.size))
    return float(np.uint32(bits).view(np.float32))


def dequantize(
    library: ctypes.CDLL, name: str, blocks: NDArray[np.uint8], size: int
) -> NDArray[np.float32]:
    """Stored blocks (B, block bytes) of storage type `name` as float32 (B, size)."""
    blocks = np.ascontiguousarray(blocks)
    out = np.empty((len(blocks), size), np.float32)
    function = getattr(library, f"puna_dequantize_{name}")
    function(_pointer(blocks), ctypes.c_int64(len(blocks)), _pointer(out))
    return out


def quantize(
    library: ctypes.CDLL,
    name: str,
    rows: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
    row_bytes: int,
) -> NDArray[np.uint8]:
    """Rows (R, length), each whole blocks, stored as `name`: (R, row_bytes).

    `importance` is how much the squared error of each column counts (length,), where the type
    weighs errors. The weights must be ones that the type can hold.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.empty((len(rows), row_bytes), np.uint8)
    columns = None
    if importance is not None:
        columns = np.ascontiguousarray(importance, np.float32)
        if columns.shape != rows.shape[1:]:
            raise ValueError(f"importance {columns.shape} does not fit rows {rows.shape}")
    getattr(library, f"puna_quantize_{name}")(
        _pointer(rows),
        ctypes.c_int64(len(rows)),
        ctypes.c_int64(rows.shape[1]),
        None if columns is None else _pointer(columns),
        _pointer(out),
    )
    return out


def _pointer(array: NDArray[np.float32] | NDArray[np.uint8]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
