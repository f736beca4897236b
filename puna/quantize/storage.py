"""The table of storage types: how many bytes a row takes, and how it becomes float32 and back.

A stored tensor is a uint8 array of shape (*shape[:-1], row bytes), whatever its type, so that rows
can be sliced, permuted and copied without knowing what is in them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from puna.kernels import native
from puna.quantize.block_type import F16_MAX, BlockType
from puna.quantize.block_type import Bytes as Bytes
from puna.quantize.block_type import Floats as Floats
from puna.quantize.blocks import BLOCKS
from puna.quantize.k_quants import K_QUANTS

# Weights that are re-stored at a time by a thread: their float32s stay near the processor.
CHUNK = 1 << 18
# The least that a column counts, of the mean: its weights must not become arbitrary.
LEAST_IMPORTANCE = 1e-4


@dataclass(frozen=True, slots=True)
class StorageType:
    """One way to store numbers: `block_size` neighbours in a row share `block_bytes` bytes.

    `quantize(x, importance)` takes a float32 array (..., row length) and, or None, how much the
    squared error of each column counts (row length,); types that round plainly ignore it.
    """

    name: str
    block_size: int
    block_bytes: int
    dequantize: Callable[[Bytes], Floats]
    quantize: Callable[[Floats, Floats | None], Bytes]

    def row_bytes(self, row_length: int) -> int:
        """Bytes of a row; ValueError where blocks do not fill it exactly."""
        if row_length % self.block_size:
            raise ValueError(
                f"{self.name} needs rows that are a multiple of {self.block_size}, not {row_length}"
            )
        return row_length // self.block_size * self.block_bytes

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the uint8 array that holds a tensor of `shape`."""
        return (*shape[:-1], self.row_bytes(shape[-1]))

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(self.stored_shape(shape))


def _from_f32(raw: Bytes) -> Floats:
    return raw.view(np.float32)


def _to_f32(x: Floats, importance: Floats | None = None) -> Bytes:
    return np.ascontiguousarray(x).view(np.uint8)


def _from_f16(raw: Bytes) -> Floats:
    library = native.library()
    if library is None:
        return raw.view(np.float16).astype(np.float32)
    x = native.dequantize(library, "f16", np.ascontiguousarray(raw).reshape(raw.size // 2, 2), 1)
    return x.reshape(*raw.shape[:-1], raw.shape[-1] // 2)


def _to_f16(x: Floats, importance: Floats | None = None) -> Bytes:
    if np.any(np.abs(x) > F16_MAX):
        raise ValueError(f"a weight of {np.abs(x).max():g} does not fit f16; use bf16 or f32")
    return x.astype(np.float16).view(np.uint8)


def _from_bf16(raw: Bytes) -> Floats:
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _to_bf16(x: Floats, importance: Floats | None = None) -> Bytes:
    bits = np.ascontiguousarray(x).view(np.uint32)
    # Round to nearest, ties to even; a NaN keeps its top bits and stays a NaN.
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    nan = (bits >> 16) | 0x40
    return np.where(np.isnan(x), nan, rounded).astype(np.uint16).view(np.uint8)


def _dequantize(kind: BlockType, raw: Bytes) -> Floats:
    num_blocks = math.prod(raw.shape) // kind.num_bytes
    blocks = np.ascontiguousarray(raw).reshape(num_blocks, kind.num_bytes)
    library = native.library()
    if library is not None:
        x = native.dequantize(library, kind.name, blocks, kind.size)
    else:
        with np.errstate(invalid="ignore"):  # what a damaged file has for scales
            x = kind.dequantize(blocks)
    return x.reshape(*raw.shape[:-1], raw.shape[-1] // kind.num_bytes * kind.size)


def _quantize(kind: BlockType, x: Floats, importance: Floats | None = None) -> Bytes:
    library = native.library()
    length = x.shape[-1]
    columns = None if importance is None else _relative(importance, length)
    num_bytes = STORAGE[kind.name].row_bytes(length)
    if x.size == 0:
        return np.empty((*x.shape[:-1], num_bytes), np.uint8)
    if library is not None:
        _check_fits(native.largest(library, x), kind)
        rows = x.reshape(math.prod(x.shape[:-1]), length)
        stored = native.quantize(library, kind.name, rows, columns, num_bytes)
    else:
        _check_fits(_largest(x), kind)
        blocks = np.ascontiguousarray(x).reshape(x.size // kind.size, kind.size)
        weights = None
        if columns is not None:
            weights = np.broadcast_to(columns, x.shape).reshape(blocks.shape)
        stored = kind.quantize(blocks, weights)
    return stored.reshape(*x.shape[:-1], num_bytes)


def _largest(x: Floats) -> float:
    """The largest magnitude; they sort as their bits do, with NaN above infinity."""
    bits = int((np.ascontiguousarray(x).view(np.uint32) & 0x7FFFFFFF).max(initial=0))
    return float(np.uint32(bits).view(np.float32))


def _check_fits(largest: float, kind: BlockType) -> None:
    """ValueError unless all weights are finite and none too large for the type."""
    if not math.isfinite(largest):
        raise ValueError(f"a weight is not a finite number, which {kind.name} cannot hold")
    if largest > kind.limit:
        raise ValueError(f"a weight of {largest:g} does not fit {kind.name}; use bf16 or f32")


def _relative(importance: Floats, length: int) -> Floats:
    """How much each column counts, its mean about 1 and none without weight."""
    if importance.shape != (length,):
        raise ValueError(f"importance has shape {importance.shape}, the rows {length} columns")
    if not np.isfinite(importance).all() or importance.min() < 0:
        raise ValueError("importance must be finite and not negative")
    mean = importance.mean(dtype=np.float64)
    if mean == 0:
        return np.ones(length, np.float32)
    return np.maximum(importance / mean, LEAST_IMPORTANCE).astype(np.float32)


STORAGE: dict[str, StorageType] = {
    kind.name: kind
    for kind in (
        StorageType("f32", 1, 4, _from_f32, _to_f32),
        StorageType("f16", 1, 2, _from_f16, _to_f16),
        StorageType("bf16", 1, 2, _from_bf16, _to_bf16),
        *(
            StorageType(
                kind.name,
                kind.size,
                kind.num_bytes,
                partial(_dequantize, kind),
                partial(_quantize, kind),
            )
            for kind in (*BLOCKS, *K_QUANTS)
        ),
    )
}


def storage_type(name: str) -> StorageType:
    """The storage type called `name`; ValueError lists the names there are."""
    if name not in STORAGE:
        raise ValueError(f"no storage type '{name}'; there are: {', '.join(STORAGE)}")
    return STORAGE[name]


def convert(raw: Bytes, source: str, target: str, importance: Floats | None = None) -> Bytes:
    """Re-stores rows from one type as another; the same bytes where the types are the same.

    Works on some rows at a time in as many threads as there are processors, so that float32 takes
    little memory; the result does not depend on how many. ValueError as the types say.
    """
    if source == target:
        return raw
    old, new = STORAGE[source], STORAGE[target]
    length = raw.shape[-1] // old.block_bytes * old.block_size
    rows = raw.reshape(math.prod(raw.shape[:-1]), raw.shape[-1])
    out = np.empty((len(rows), new.row_bytes(length)), np.uint8)

    def restore(part: slice) -> None:
        x = old.dequantize(np.ascontiguousarray(rows[part]))
        out[part] = new.quantize(x, importance)

    parts = list(_chunks(len(rows), length))
    with ThreadPoolExecutor(_num_processors()) as pool:
        for _ in pool.map(restore, parts):
            pass
    return out.reshape(*raw.shape[:-1], out.shape[-1])


def _chunks(num_rows: int, length: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, length))
    for begin in range(0, num_rows, step):
        yield slice(begin, begin + step)


def _num_processors() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
