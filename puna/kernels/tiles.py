"""Matrices as the native step reads them: tiles of 16 rows (`src/tiles.h` has the layouts).

Tiles hold exactly what the stored rows held, in the order that a processor wants it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint8]

ROWS = 16  # of a tile

# The number of each kind in `src/tiles.h`.
_NUMBERS = ("f32", "f16", "bf16")
_BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q4_k", "q5_k", "q6_k")
_GROUPED = ("grouped_4", "grouped_8")
KINDS = {name: number for number, name in enumerate((*_NUMBERS, *_BLOCKS, *_GROUPED))}
_NUMBER_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
# Q3_K's codes and scales fit the tiles of Q6_K, whose products take the same time.
_HOSTS = {"q3_k": "q6_k"}
_PART = 1 << 20  # stored bytes that one thread packs at a time


@dataclass(frozen=True, slots=True)
class Tiles:
    """A matrix (rows, columns) of a kind; `data` holds ceil(rows / 16) tiles."""

    kind: int
    rows: int
    columns: int
    data: Array


class Matrix(ctypes.Structure):
    """`Matrix` in `src/multiply.h`."""

    _fields_ = (
        ("tiles", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("kind", "rows", "columns", "padding")),
    )


def as_matrix(tiles: Tiles) -> Matrix:
    """The tiles, which must be kept, as native code is given them."""
    return Matrix(tiles.data.ctypes.data, tiles.kind, tiles.rows, tiles.columns, 0)


def kind_of(dtype: str) -> int:
    """The kind of tiles that rows of a storage type become; ValueError for other types."""
    host = _HOSTS.get(dtype, dtype)
    if host not in KINDS:
        raise ValueError(f"there are no tiles of {dtype}")
    return KINDS[host]


def packed_bytes(library: ctypes.CDLL, dtype: str, shape: tuple[int, int]) -> int:
    """Bytes that the tiles of a matrix (rows, columns) of a storage type take."""
    return -(-shape[0] // ROWS) * _tile_bytes(library, kind_of(dtype), shape[1])


def pack(
    library: ctypes.CDLL,
    dtype: str,
    stored: Array,
    columns: int,
    data: Array | None = None,
    share: Callable[[Callable[[int], None], Iterable[int]], Iterable[Any]] = map,
) -> Tiles:
    """Stored rows (rows, row bytes) of a storage type as tiles, in `data` or memory of their own.

    `share` is `map`, or that of a pool whose threads share the rows. ValueError for other types.
    """
    kind = kind_of(dtype)
    stored = np.ascontiguousarray(stored)
    rows, row_bytes = stored.shape
    tile_bytes = _tile_bytes(library, kind, columns)
    if data is None:
        data = huge(-(-rows // ROWS) * tile_bytes)
    if rows % ROWS:
        data[-tile_bytes:] = 0
    at_once = max(1, _PART // (ROWS * row_bytes)) * ROWS

    def pack_rows(begin: int) -> None:
        source = ctypes.c_void_p(stored.ctypes.data + begin * row_bytes)
        target = ctypes.c_void_p(data.ctypes.data + begin // ROWS * tile_bytes)
        shape = (ctypes.c_int64(min(at_once, rows - begin)), ctypes.c_int64(columns))
        if dtype in _NUMBER_BYTES:
            library.puna_pack_numbers(_NUMBER_BYTES[dtype], source, *shape, target)
            return
        block = 32 if dtype.endswith(("_0", "_1")) else 256
        block_bytes = ctypes.c_int64(row_bytes * block // columns)
        library.puna_pack_blocks(KINDS.get(dtype, -1), source, *shape, block_bytes, target)

    for _ in share(pack_rows, range(0, rows, at_once)):
        pass
    return Tiles(kind, rows, columns, data)


def checksum(library: ctypes.CDLL, data: Array) -> int:
    """A number of 64 bits that changes with the bytes."""
    library.puna_checksum.restype = ctypes.c_uint64
    pointer = ctypes.c_void_p(data.ctypes.data)
    return int(library.puna_checksum(pointer, ctypes.c_int64(data.size)))


def _tile_bytes(library: ctypes.CDLL, kind: int, columns: int) -> int:
    library.puna_tile_bytes.restype = ctypes.c_int64
    return int(library.puna_tile_bytes(kind, ctypes.c_int64(columns)))


def grouped_kind(bits: int, *, symmetric: bool) -> str:
    """The kind of tiles that holds integers of so many bits exactly, in the least bytes."""
    if symmetric and bits in (4, 8):  # their zeros are those of these block types
        return f"q{bits}_0"
    return "grouped_4" if bits <= 4 else "grouped_8"


def grouped_bytes(bits: int, shape: tuple[int, ...]) -> int:
    """Bytes, at most, that tiles of a matrix of such integers take."""
    codes, scale_and_zero = 16 if bits <= 4 else 32, 3  # of a row and 32 columns
    return -(-shape[0] // ROWS) * ROWS * -(-shape[1] // 32) * (codes + scale_and_zero)


def pack_grouped(
    library: ctypes.CDLL, kind: str, codes: Array, scales: Array, zeros: Array, group_size: int
) -> Tiles:
    """Integers in groups of neighbours as tiles.

    `codes` (rows, columns); `scales` float16, as bytes (rows, 2 * groups); `zeros` (rows, groups).
    Columns and group size are multiples of 32, but that a group may be longer than a row.
    """
    rows, columns = codes.shape
    tile_bytes = _tile_bytes(library, KINDS[kind], columns)
    data = huge(-(-rows // ROWS) * tile_bytes)
    arrays = [np.ascontiguousarray(array) for array in (codes, scales, zeros)]
    library.puna_pack_grouped(
        KINDS[kind],
        *(ctypes.c_void_p(array.ctypes.data) for array in arrays),
        *(ctypes.c_int64(number) for number in (rows, columns, group_size)),
        ctypes.c_void_p(data.ctypes.data),
    )
    return Tiles(KINDS[kind], rows, columns, data)


def huge(size: int) -> Array:
    """Zeros, at the begin of a page; in huge pages where the system has them."""
    # Memory that may be shared, which is the default, gets no huge pages.
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:size]
