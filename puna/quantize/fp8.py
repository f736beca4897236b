"""fp8 weights: e4m3 (1 sign, 4 exponent, 3 mantissa bits; up to 448), a float32 scale a row.

Tensors: `codes` float8_e4m3fn (O, I), `scales` float32 (O, 1); W = codes * scales. Any device can
hold and unpack them; multiplying in fp8 itself takes a GPU that has it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_CAPABILITY = (9, 0)  # of Hopper, the first to multiply with a scale for each row


def pack_fp8(weight: Tensor, group_size: int) -> dict[str, Tensor]:
    """Rounds `weight` (O, I); relative errors are at most 1/16 above the smallest exponents."""
    if group_size != -1:
        raise ValueError(f"fp8 has a scale for each row; leave out the group size {group_size}")
    codes, scales = _rounded_rows(weight.detach())
    return {"codes": codes, "scales": scales}


def unpack_fp8(tensors: Mapping[str, Tensor], group_size: int, rows: slice) -> Tensor:
    """Float32 rows (R, I)."""
    return tensors["codes"][rows].float() * tensors["scales"][rows]


def check_scaled_product(device: torch.device) -> None:
    """ValueError, saying why, unless `scaled_product` runs on this device."""
    if device.type != "cuda":
        raise ValueError(
            f"fp8 products need a GPU of compute capability 9.0 or later, not {device.type}; the "
            "scheme fp8, which only stores its weights so, runs anywhere"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        raise ValueError(
            "fp8 products need a GPU of compute capability 9.0 or later, this one has "
            f"{capability[0]}.{capability[1]}; the scheme fp8 runs anywhere"
        )


def scaled_product(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """x (..., I) W^T with both sides in fp8, x with a scale for each row; ValueError elsewhere."""
    check_scaled_product(x.device)
    codes, scales = _rounded_rows(x.reshape(-1, x.shape[-1]))
    out = torch._scaled_mm(
        codes,
        tensors["codes"].T,
        scale_a=scales,
        scale_b=tensors["scales"].T,
        out_dtype=torch.bfloat16,
    )
    return out.view(*x.shape[:-1], -1).to(x.dtype)


def _rounded_rows(x_RI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (R, I) and scales (R, 1) that bring each row's largest number to fp8's."""
    floats = x_RI.float()
    if not floats.isfinite().all():
        raise ValueError("a number is not finite, which fp8 cannot hold")
    scales = floats.abs().amax(-1, keepdim=True) / _LARGEST
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales))
    return (floats / divisor).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn), scales
