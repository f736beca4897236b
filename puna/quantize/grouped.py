"""`Grouped`: a matrix of small integers whose neighbours along the input share a scale and a zero.

What GPTQ files hold and what the int4 and int8 schemes compute with; the packing into words is the
file format's, or the scheme's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.quantize.block_type import Floats

_CHUNK = 1 << 18  # weights that are worked on at a time: they stay near the processor


@dataclass(frozen=True, slots=True)
class Grouped:
    """W[o, i] = scales[o, g] * (codes[o, i] - zeros[o, g]) with g = groups[i].

    `codes` uint8 (O, I), each below 2**bits; `scales` float16 (O, G); `zeros` int16 (O, G), below
    2**bits as well; `groups` int32 (I,), the group of each input: i // group_size unless the
    weights were quantized in order of activation.
    """

    bits: int
    group_size: int  # inputs that share a scale
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.int16]
    groups: NDArray[np.int32]

    @property
    def in_order(self) -> bool:
        """Whether each group is a run of neighbours."""
        return bool((self.groups == np.arange(len(self.groups)) // self.group_size).all())

    @property
    def symmetric(self) -> bool:
        """Whether every zero is the middle code."""
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def dequantize(self) -> Floats:
        """The matrix (O, I) in float32; besides it, little memory is taken."""
        num_outputs, num_inputs = self.codes.shape
        out = np.empty((num_outputs, num_inputs), np.float32)
        step = max(1, _CHUNK // num_inputs)
        whole_groups = self.in_order and num_inputs % self.group_size == 0
        for begin in range(0, num_outputs, step):
            rows = slice(begin, begin + step)
            scales = self.scales[rows].astype(np.float32)
            zeros = self.zeros[rows].astype(np.float32)
            part = out[rows]
            part[...] = self.codes[rows]
            if whole_groups:
                grouped = part.reshape(*scales.shape, self.group_size)
                grouped -= zeros[..., None]
                grouped *= scales[..., None]
            else:
                part -= zeros[:, self.groups]
                part *= scales[:, self.groups]
        return out


def group_count(num_inputs: int, group_size: int) -> int:
    """Groups of `group_size` inputs (-1: all) that `num_inputs` make; the last may be smaller."""
    return 1 if group_size == -1 else -(-num_inputs // group_size)
