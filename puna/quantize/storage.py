"""The table of storage types: how many bytes a row takes, and how it becomes float32 and back.

A stored tensor is a uint8 array of shape (*shape[:-1], row bytes), whatever its type, so that rows
can be sliced, permuted and copied without knowing what is in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


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
    return raw.view(np.float16).astype(np.float32)


def _to_f16(x: Floats, importance: Floats | None = None) -> Bytes:
    if np.any(np.abs(x) > np.finfo(np.float16).max):
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


def _from_q8_0(raw: Bytes) -> Floats:
    blocks = raw.reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    values = blocks[:, 2:].view(np.int8).astype(np.float32) * scale
    return values.reshape(*raw.shape[:-1], -1)


def _to_q8_0(x: Floats, importance: Floats | None = None) -> Bytes:
    """GGML's Q8_0: f16 scale max|x|/127, then 32 int8, rounded half away from zero."""
    blocks = np.ascontiguousarray(x).reshape(-1, 32)
    if not np.isfinite(blocks).all():
        raise ValueError("a weight is not a finite number, which q8_0 cannot hold")
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    scaled = (blocks * inverse).astype(np.float64)  # in f32, 0.49999997 + 0.5 would be 1
    q = (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int8)
    out = np.empty((len(blocks), 34), np.uint8)
    out[:, :2] = _to_f16(scale)
    out[:, 2:] = q.view(np.uint8)
    return out.reshape(*x.shape[:-1], -1)


STORAGE: dict[str, StorageType] = {
    kind.name: kind
    for kind in (
        StorageType("f32", 1, 4, _from_f32, _to_f32),
        StorageType("f16", 1, 2, _from_f16, _to_f16),
        StorageType("bf16", 1, 2, _from_bf16, _to_bf16),
        StorageType("q8_0", 32, 34, _from_q8_0, _to_q8_0),
    )
}


def storage_type(name: str) -> StorageType:
    """The storage type called `name`; ValueError lists the names there are."""
    if name not in STORAGE:
        raise ValueError(f"no storage type '{name}'; there are: {', '.join(STORAGE)}")
    return STORAGE[name]


def convert(raw: Bytes, source: str, target: str, importance: Floats | None = None) -> Bytes:
    """Re-stores rows from one type as another; the same bytes where the types are the same."""
    if source == target:
        return raw
    x = STORAGE[source].dequantize(np.ascontiguousarray(raw))
    return STORAGE[target].quantize(x, importance)
