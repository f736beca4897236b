"""Rounding a matrix to groups of small integers, each weight to its nearest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.quantize.block_type import Floats
from puna.quantize.grouped import Grouped, group_count
from puna.quantize.packing import BITS

_CHUNK = 1 << 18  # weights that are rounded at a time


def round_to_nearest(matrix: Floats, bits: int, group_size: int, symmetric: bool = True) -> Grouped:
    """`matrix` float32 (O, I) in groups of `group_size` inputs (-1: all) that cover their range.

    Symmetric groups have the middle code as their zero; others one that makes 0 a code. Scales are
    rounded to float16 before the weights are to their multiples. Raises ValueError for weights that
    are not finite or need a larger scale than float16 has.
    """
    num_outputs, num_inputs = matrix.shape
    if bits not in BITS:
        raise ValueError(f"{bits} bits is none of {', '.join(map(str, BITS))}")
    if group_size != -1 and group_size < 1:
        raise ValueError(f"the group size must be positive or -1, not {group_size}")
    num_groups = group_count(num_inputs, group_size)
    size = num_inputs if group_size == -1 else group_size
    codes = np.empty((num_outputs, num_inputs), np.uint8)
    scales = np.empty((num_outputs, num_groups), np.float16)
    zeros = np.empty((num_outputs, num_groups), np.int16)
    step = max(1, _CHUNK // num_inputs)
    for begin in range(0, num_outputs, step):
        rows = slice(begin, begin + step)
        part = matrix[rows]
        if not np.isfinite(part).all():
            raise ValueError("a weight is not a finite number")
        # Zeros that fill up the last group change neither its range nor the other weights.
        padded = np.zeros((len(part), num_groups * size), np.float32)
        padded[:, :num_inputs] = part
        groups = padded.reshape(len(part), num_groups, size)
        rounded, scales[rows], zeros[rows] = _round(groups, bits, symmetric)
        codes[rows] = rounded.reshape(padded.shape)[:, :num_inputs]
    order = (np.arange(num_inputs) // size).astype(np.int32)
    return Grouped(bits, size, codes, scales, zeros, order)


def _round(
    groups: Floats, bits: int, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.int16]]:
    """Groups (O, G, S) -> codes of that shape, scales and zeros (O, G)."""
    max_code = (1 << bits) - 1
    if symmetric:
        high = np.abs(groups).max(-1)
        low = -high
    else:
        low, high = groups.min(-1).clip(max=0), groups.max(-1).clip(min=0)
    with np.errstate(over="ignore"):
        stored = ((high - low) / np.float32(max_code)).astype(np.float16)
    if not np.isfinite(stored).all():
        raise ValueError(f"a weight of {max(high.max(), -low.min()):g} needs too large a scale")
    scale = stored.astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    if symmetric:
        zero = np.full_like(scale, 1 << (bits - 1))
    else:
        zero = np.rint(-low * inverse).clip(0, max_code)
    codes = (np.rint(groups * inverse[..., None]) + zero[..., None]).clip(0, max_code)
    return codes.astype(np.uint8), stored, zero.astype(np.int16)
