"""int8 and int4 weights with a scale and a zero for each group of inputs: their packed layout.

Tensors of a matrix of O outputs and I inputs, G groups of S neighbours (the last may be smaller):

| name | int8 | int4 |
|---|---|---|
| `codes` | uint8 (O, I) | uint8 (O, I/2), two codes a byte |
| `scales`, `zeros` | float16, uint8 (O, G) | the same |
| `order` | int32 (I,), or absent | the same |

W[o, order[i]] = scales[o, g] * (codes[o, i] - zeros[o, g]) with g = i // S. `order` sorts inputs by
group where the weights were quantized in order of activation. Codes stay unsigned, as VNNI's
multiply-add wants one side. int4 lies in runs of 32 inputs, 16 bytes: byte j has input j in its low
half and input 16 + j in its high one, so that a mask and a shift give two runs of neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from puna.kernels.layouts import HALF, RUN, pack_nibbles
from puna.quantize.grouped import Grouped
from puna.quantize.rounding import round_to_nearest

Tensors = dict[str, Tensor]


def pack_int8(weight: Tensor, group_size: int) -> Tensors:
    """Rounds `weight` (O, I) to symmetric groups: the error is at most half a scale."""
    return pack_grouped_int8(_rounded(weight, 8, group_size, symmetric=True))


def pack_int4(weight: Tensor, group_size: int) -> Tensors:
    """Rounds `weight` (O, I) to groups with a zero of their own, which 16 codes need more."""
    return pack_grouped_int4(_rounded(weight, 4, group_size, symmetric=False))


def pack_grouped_int8(grouped: Grouped) -> Tensors:
    """The same integers in the int8 layout."""
    codes, rest = _sorted(grouped, 8)
    return {"codes": codes, **rest}


def pack_grouped_int4(grouped: Grouped) -> Tensors:
    """The same integers in the int4 layout; ValueError for more than 4 bits."""
    codes, rest = _sorted(grouped, 4)
    if codes.shape[1] % RUN:
        raise ValueError(f"int4 needs inputs in multiples of {RUN}, not {codes.shape[1]}")
    return {"codes": pack_nibbles(codes), **rest}


def unpack_int8(tensors: Mapping[str, Tensor], group_size: int, rows: slice) -> Tensor:
    """Float32 rows (R, I), inputs in the packed order."""
    return _values(tensors["codes"][rows], tensors, group_size, rows)


def unpack_int4(tensors: Mapping[str, Tensor], group_size: int, rows: slice) -> Tensor:
    """Float32 rows (R, I), inputs in the packed order."""
    packed = tensors["codes"][rows]
    runs = packed.view(len(packed), -1, HALF)
    codes = torch.stack((runs & 15, runs >> 4), dim=2).view(len(packed), -1)
    return _values(codes, tensors, group_size, rows)


def _values(codes: Tensor, tensors: Mapping[str, Tensor], group_size: int, rows: slice) -> Tensor:
    values = codes.float()
    num_inputs = codes.shape[1]
    scales, zeros = tensors["scales"][rows].float(), tensors["zeros"][rows].float()
    if num_inputs % group_size == 0:
        by_group = values.view(len(values), -1, group_size)
        return ((by_group - zeros[..., None]) * scales[..., None]).view(values.shape)
    groups = torch.arange(num_inputs, device=codes.device) // group_size
    return (values - zeros[:, groups]) * scales[:, groups]


def _rounded(weight: Tensor, bits: int, group_size: int, *, symmetric: bool) -> Grouped:
    matrix = weight.detach().float().cpu().numpy()
    return round_to_nearest(matrix, bits, group_size, symmetric)


def _sorted(grouped: Grouped, max_bits: int) -> tuple[Tensor, Tensors]:
    """Codes with each group's inputs together, and the tensors that both layouts share."""
    if grouped.bits > max_bits:
        raise ValueError(f"weights of {grouped.bits} bits do not fit int{max_bits}; use int8")
    num_inputs = len(grouped.groups)
    order = np.argsort(grouped.groups, kind="stable")
    expected = np.arange(num_inputs) // grouped.group_size
    if (grouped.groups[order] != expected).any():
        raise ValueError(
            f"groups of unequal sizes cannot be packed; each needs {grouped.group_size} inputs"
        )
    rest = {
        "scales": torch.from_numpy(grouped.scales.copy()),
        "zeros": torch.from_numpy(grouped.zeros.astype(np.uint8)),
    }
    if grouped.in_order:
        return torch.from_numpy(grouped.codes.copy()), rest
    codes = torch.from_numpy(np.ascontiguousarray(grouped.codes[:, order]))
    return codes, {**rest, "order": torch.from_numpy(order.astype(np.int32))}
