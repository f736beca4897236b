"""x W^T over float weights for one row: what decoding alone does, limited by memory.

More rows are left to the device's own library. Defined by `F.linear`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = {"BLOCK_N": 4, "BLOCK_K": 1024}


@triton.jit
def dense_one_row_kernel(
    x, weight, out, num_outputs, num_inputs, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """out (O,) = W (O, I) x (I,), summed in float32."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for begin in range(0, num_inputs, BLOCK_K):
        columns = begin + tl.arange(0, BLOCK_K)
        mask = (rows < num_outputs)[:, None] & (columns < num_inputs)[None, :]
        place = rows[:, None] * num_inputs + columns[None, :]
        w = tl.load(weight + place, mask=mask, other=0).to(tl.float32)
        x_part = tl.load(x + columns, mask=columns < num_inputs, other=0).to(tl.float32)
        total += w * x_part[None, :]
    result = tl.sum(total, axis=1).to(out.dtype.element_ty)
    tl.store(out + rows, result, mask=rows < num_outputs)


def dense_linear(
    x_RI: Tensor, weight_OI: Tensor, blocks: Mapping[str, int] | None = None
) -> Tensor:
    """x (1, I) times the transpose of a weight (O, I); both contiguous."""
    blocks = blocks or BLOCKS
    num_outputs, num_inputs = weight_OI.shape
    out = torch.empty(1, num_outputs, device=x_RI.device, dtype=x_RI.dtype)
    grid = (triton.cdiv(num_outputs, blocks["BLOCK_N"]),)
    dense_one_row_kernel[grid](x_RI, weight_OI, out, num_outputs, num_inputs, **blocks)
    return out
