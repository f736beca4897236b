"""`Grouped`: a matrix of small integers whose neighbours along the input share a scale and a zero.

What GPTQ files hold and what the int4 and int8 schemes compute with; the packing into words is the
file format's, or the scheme's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.quantize.storage import Floats


@dataclass(frozen=True, slots=True)
class Grouped:
    """W[o, i] = scales[o, g] * (codes[o, i] - zeros[o, g]) with g = groups[i].

    `codes` uint8 (O, I), each below 2**bits; `scales` float16 (O, G); `zeros` int16 (O, G), from 0
    to 2**bits; `groups` int32 (I,), the group of each input: i // group_size unless the weights
    were quantized in order of activation.
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

    def dequantize(self) -> Floats:
        """The matrix (O, I) in float32."""
        centred = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, self.groups]
        return centred * self.scales.astype(np.float32)[:, self.groups]
