"""x W^T over packed weights (`kernels/layouts.py`): one row by products and sums, more by `tl.dot`.

Decoding reads each weight once for one row, so that memory is the limit: a program takes a few
outputs and all inputs, a thread 16 bytes of codes at a time. It sums codes * x over half a run, in
float32, before it multiplies by the scale; the offset is multiplied by the sum of x alone. With
more rows, tiles of weights are unpacked to x's type for the tensor cores; where outputs alone make
too few programs the inputs are split, and the parts summed in a fixed order. One row times codes
of 4 bits has a kernel of its own (`nibble_row.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from puna.kernels.layouts import LAYOUTS, RUN
from puna.kernels.triton.nibble_row import nibble_row_kernel
from puna.kernels.triton.scales import scale_offset

_OFFSETS = {"zeros": 0, "middle": 1, "minimums": 2}
_PROGRAMS = 264  # that fill a large GPU twice


@triton.jit
def _codes(
    codes, twos, ones, row, run, lane, num_runs, mask, LOW: tl.constexpr, TWOS: tl.constexpr,
    ONES: tl.constexpr,
):  # fmt: skip
    """Both halves (N, R, 16) of the codes of some runs (N, R), as float32."""
    place = row * num_runs + run
    if LOW == 8:
        bytes_ = codes + place[:, :, None] * 32 + lane
        low = tl.load(bytes_, mask=mask[:, :, None], other=0).to(tl.int32)
        high = tl.load(bytes_ + 16, mask=mask[:, :, None], other=0).to(tl.int32)
    elif LOW == 4:
        bytes_ = codes + place[:, :, None] * 16 + lane
        both = tl.load(bytes_, mask=mask[:, :, None], other=0).to(tl.int32)
        low = both & 15
        high = both >> 4
    else:
        low = lane * 0
        high = lane * 0
    if TWOS:
        # Words are loaded as (N, R) and broadcast: loads of (N, R, 1) take another layout.
        first = tl.load(twos + place * 2, mask=mask, other=0)[:, :, None]
        second = tl.load(twos + place * 2 + 1, mask=mask, other=0)[:, :, None]
        low = low | ((first >> (2 * lane)) & 3) << LOW
        high = high | ((second >> (2 * lane)) & 3) << LOW
    if ONES:
        bits = tl.load(ones + place, mask=mask, other=0)[:, :, None]
        low = low | ((bits >> lane) & 1) << (LOW + 2 * TWOS)
        high = high | ((bits >> (lane + 16)) & 1) << (LOW + 2 * TWOS)
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def one_row_kernel(
    x, codes, twos, ones, scales, zeros, supers, super_zeros, out,
    num_outputs, num_runs, num_groups, num_supers,
    LOW: tl.constexpr, TWOS: tl.constexpr, ONES: tl.constexpr, GROUP: tl.constexpr,
    OFFSET: tl.constexpr, MIDDLE: tl.constexpr, SUPERS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out (O,) = W x (I,)."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, 16)[None, None, :]
    total = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for begin in range(0, num_runs, BLOCK_R):
        runs = begin + tl.arange(0, BLOCK_R)
        # The weights come from afar: they are asked for first.
        row, run = rows[:, None], runs[None, :]
        mask = (row < num_outputs) & (run < num_runs)
        low, high = _codes(
            codes, twos, ones, row, run, lane, num_runs, mask, LOW, TWOS, ONES
        )  # fmt: skip
        place = runs[:, None] * 32 + tl.arange(0, 16)[None, :]
        inside = (runs < num_runs)[:, None]
        x_low = tl.load(x + place, mask=inside, other=0).to(tl.float32)
        x_high = tl.load(x + place + 16, mask=inside, other=0).to(tl.float32)
        sum_low = tl.sum(low * x_low[None, :, :], axis=2)
        sum_high = tl.sum(high * x_high[None, :, :], axis=2)
        ones_low = tl.sum(x_low, axis=1)[None, :]
        ones_high = tl.sum(x_high, axis=1)[None, :]
        scale, offset = scale_offset(
            scales, zeros, supers, super_zeros, row, run, 0, num_groups, num_supers, mask,
            GROUP, OFFSET, MIDDLE, SUPERS,
        )  # fmt: skip
        if GROUP % 32 != 0:
            total += scale * sum_low - offset * ones_low
            scale, offset = scale_offset(
                scales, zeros, supers, super_zeros, row, run, 1, num_groups, num_supers, mask,
                GROUP, OFFSET, MIDDLE, SUPERS,
            )  # fmt: skip
            total += scale * sum_high - offset * ones_high
        else:
            total += scale * (sum_low + sum_high) - offset * (ones_low + ones_high)
    result = tl.sum(total, axis=1).to(out.dtype.element_ty)
    tl.store(out + rows, result, mask=rows < num_outputs)


@triton.jit
def rows_kernel(
    x, codes, twos, ones, scales, zeros, supers, super_zeros, out,
    num_rows, num_outputs, num_runs, num_groups, num_supers, runs_a_split,
    LOW: tl.constexpr, TWOS: tl.constexpr, ONES: tl.constexpr, GROUP: tl.constexpr,
    OFFSET: tl.constexpr, MIDDLE: tl.constexpr, SUPERS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out (splits, M, O): the part of x (M, I) W^T that comes of each split of the inputs."""
    outputs = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(2)
    lane = tl.arange(0, 16)[None, None, :]
    columns = tl.arange(0, BLOCK_R * 16)
    first = split * runs_a_split
    last = tl.minimum(first + runs_a_split, num_runs)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(first, last, BLOCK_R):
        runs = begin + tl.arange(0, BLOCK_R)
        row, run = outputs[:, None], runs[None, :]
        mask = (row < num_outputs) & (run < last)
        low, high = _codes(
            codes, twos, ones, row, run, lane, num_runs, mask, LOW, TWOS, ONES
        )  # fmt: skip
        scale, offset = scale_offset(
            scales, zeros, supers, super_zeros, row, run, 0, num_groups, num_supers, mask,
            GROUP, OFFSET, MIDDLE, SUPERS,
        )  # fmt: skip
        low = scale[:, :, None] * low - offset[:, :, None]
        if GROUP % 32 != 0:
            scale, offset = scale_offset(
                scales, zeros, supers, super_zeros, row, run, 1, num_groups, num_supers, mask,
                GROUP, OFFSET, MIDDLE, SUPERS,
            )  # fmt: skip
        high = scale[:, :, None] * high - offset[:, :, None]
        element = (begin + columns // 16) * 32 + columns % 16
        inside = (rows < num_rows)[:, None] & (begin + columns // 16 < last)[None, :]
        place = x + rows[:, None] * (num_runs * 32) + element[None, :]
        x_low = tl.load(place, mask=inside, other=0)
        x_high = tl.load(place + 16, mask=inside, other=0)
        w_low = tl.reshape(low.to(x_low.dtype), (BLOCK_N, BLOCK_R * 16))
        w_high = tl.reshape(high.to(x_low.dtype), (BLOCK_N, BLOCK_R * 16))
        total = tl.dot(x_low, tl.trans(w_low), total, input_precision="ieee")
        total = tl.dot(x_high, tl.trans(w_high), total, input_precision="ieee")
    place = (split * num_rows + rows[:, None]) * num_outputs + outputs[None, :]
    inside = (rows < num_rows)[:, None] & (outputs < num_outputs)[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def packed_linear(
    x_RI: Tensor,
    tensors: Mapping[str, Tensor],
    name: str,
    group: int,
    blocks: Mapping[str, int] | None = None,
) -> Tensor:
    """x (R, I), contiguous, times the transpose of the packed weight (O, I).

    `blocks` are the sizes of tiles, and of `num_warps`, where not those of the functions below.
    """
    num_rows, num_inputs = x_RI.shape
    num_outputs, num_groups = tensors["scales"].shape
    sizes = (num_outputs, num_inputs // RUN, num_groups)
    supers = tensors.get("supers")
    num_supers = 0 if supers is None else supers.shape[1]
    # What a layout does not have is never loaded; any pointer will do.
    names = ("codes", "twos", "ones", "scales", "zeros", "supers", "super_zeros")
    pointers = [tensors.get(key, tensors["scales"]) for key in names]
    options = kernel_options(name, group)
    if num_rows == 1:
        out = x_RI.new_empty(1, num_outputs)
        blocks = blocks or one_row_blocks(num_inputs, num_outputs)
        grid = (triton.cdiv(num_outputs, blocks["BLOCK_N"]),)
        if has_nibbles(name, group):
            pointers = [pointers[0].view(torch.int32), *pointers[3:]]
            options = {key: options[key] for key in ("GROUP", "OFFSET", "MIDDLE", "SUPERS")}
            nibble_row_kernel[grid](x_RI, *pointers, out, *sizes, num_supers, **options, **blocks)
            return out
        one_row_kernel[grid](x_RI, *pointers, out, *sizes, num_supers, **options, **blocks)
        return out
    blocks = blocks or rows_blocks(num_rows)
    tiles = triton.cdiv(num_outputs, blocks["BLOCK_N"]), triton.cdiv(num_rows, blocks["BLOCK_M"])
    steps = triton.cdiv(sizes[1], blocks["BLOCK_R"])
    splits = max(1, min(_PROGRAMS // (tiles[0] * tiles[1]), steps // 4))
    runs_a_split = triton.cdiv(steps, splits) * blocks["BLOCK_R"]
    dtype = x_RI.dtype if splits == 1 else torch.float32
    parts = torch.empty(splits, num_rows, num_outputs, device=x_RI.device, dtype=dtype)
    rows_kernel[(*tiles, splits)](
        x_RI, *pointers, parts, num_rows, *sizes, num_supers, runs_a_split, **options, **blocks
    )
    return parts[0] if splits == 1 else parts.sum(0).to(x_RI.dtype)


def kernel_options(name: str, group: int) -> dict[str, int]:
    """The constants that a layout makes of either kernel."""
    layout = LAYOUTS[name]
    low = layout.planes[0] if layout.planes[0] in (4, 8) else 0
    return {
        "LOW": low,
        "TWOS": int(2 in layout.planes),
        "ONES": int(1 in layout.planes),
        "GROUP": group,
        "OFFSET": _OFFSETS[layout.offset],
        "MIDDLE": layout.middle,
        "SUPERS": int(layout.has_supers),
    }


def has_nibbles(name: str, group: int) -> bool:
    """Whether `nibble_row_kernel` takes a layout: codes of 4 bits alone, whole runs a group."""
    return LAYOUTS[name].planes == (4,) and group % RUN == 0


def one_row_blocks(num_inputs: int, num_outputs: int) -> dict[str, int]:
    """Outputs and runs of a program's tile: a run for each of 128 threads.

    More outputs share the work on x, where enough programs are left.
    """
    block_n = 8 if num_outputs >= 8192 else 4
    return {"BLOCK_N": block_n, "BLOCK_R": min(128, triton.next_power_of_2(num_inputs // RUN))}


def rows_blocks(num_rows: int) -> dict[str, int]:
    """Rows, outputs and runs of a tile."""
    block_m = min(64, max(16, triton.next_power_of_2(num_rows)))
    return {"BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_R": 4}
