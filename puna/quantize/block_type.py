"""`BlockType`: a way to store blocks of neighbouring weights, defined in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]

F16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class BlockType:
    """How `size` weights become `num_bytes` bytes and back; the definition, not the fast way.

    `dequantize` takes stored blocks (B, num_bytes) to float32 (B, size). `quantize` takes weights
    float32 (B, size), none above `limit` in magnitude, and how much the squared error of each
    counts, float32 (B, size) or None, to stored blocks.
    """

    name: str
    size: int
    num_bytes: int
    limit: float
    dequantize: Callable[[Bytes], Floats]
    quantize: Callable[[Floats, Floats | None], Bytes]


def split_fields(blocks: Bytes, *sizes: int) -> list[Bytes]:
    """The fields (B, size) of stored blocks (B, sum of sizes)."""
    return np.split(blocks, np.cumsum(sizes)[:-1], axis=1)


def from_f16(field: Bytes) -> Floats:
    """A field of f16 numbers as float32 (B, numbers)."""
    return np.ascontiguousarray(field).view(np.float16).astype(np.float32)


def to_f16(x: Floats) -> Bytes:
    """Float32 (B, numbers), known to fit, as a field of f16 numbers."""
    return x.astype(np.float16).view(np.uint8)
