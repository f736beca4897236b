"""Keys and values in int8: a scale for each token and head.

Half of float16's bytes (and 2 more a head); the engine decides where they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys or values (..., D) -> int8 codes (..., D) and float16 scales (...).

    x = codes * scales; the error is at most half a scale, which is 1/127 of the largest number.
    """
    scales = (x.float().abs().amax(-1) / 127).half()
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales)).float()
    codes = (x.float() / divisor[..., None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scales


def dequantize_kv(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse, up to rounding: (..., D) in `dtype`."""
    return (codes.float() * scales.float()[..., None]).to(dtype)
