"""Attention over pages, defined by `kernels/paged.py`: FlashAttention's running softmax.

A program takes one tile of rows, one key/value head with all query heads that share it, and one
split of the positions (Flash-Decoding), so that few sequences with long contexts still fill the
GPU. How long a split is follows from the row's length on the device: the same launch serves all
lengths, and can be captured in a graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from puna.kernels.paged import Rows

_LOG2_E = 1.4426950408889634


@triton.jit
def store_kernel(k, v, keys, values, slots, k_stride, v_stride, WIDTH, BLOCK: tl.constexpr):
    """Copies row r of k and v, WIDTH numbers, to slot slots[r] of the pages."""
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    for begin in range(0, WIDTH, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        mask = column < WIDTH
        place = slot * WIDTH + column
        k_part = tl.load(k + row.to(tl.int64) * k_stride + column, mask=mask)
        v_part = tl.load(v + row.to(tl.int64) * v_stride + column, mask=mask)
        tl.store(keys + place, k_part.to(keys.dtype.element_ty), mask=mask)
        tl.store(values + place, v_part.to(values.dtype.element_ty), mask=mask)


@triton.jit
def attention_kernel(
    q, keys, values, positions, tables, starts, counts, owners, out, sums,
    scale, table_width, num_rows, num_kv_heads,
    SHARED: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out (SPLITS, R, H, D), each split's share normalised, and log2 of its sum (SPLITS, R, H).

    SHARED query heads share a key/value head; line m of the block is of row m // SHARED.
    """
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, count = tl.load(starts + tile), tl.load(counts + tile)
    line = tl.arange(0, BLOCK_M)
    valid = line // SHARED < count
    row = (start + line // SHARED).to(tl.int64)
    num_heads = num_kv_heads * SHARED
    query_head = head * SHARED + line % SHARED
    column = tl.arange(0, BLOCK_D)
    in_head = (column < WIDTH)[None, :]
    place = (row * num_heads + query_head)[:, None] * WIDTH + column[None, :]
    inside = valid[:, None] & in_head
    q_MD = tl.load(q + place, mask=inside, other=0).to(keys.dtype.element_ty)
    position = tl.load(positions + row, mask=valid, other=-1)
    length = tl.max(position) + 1
    owner = tl.load(owners + tile).to(tl.int64)

    blocks = tl.cdiv(tl.cdiv(length, BLOCK_T), SPLITS)
    first = split * blocks * BLOCK_T
    last = tl.minimum(first + blocks * BLOCK_T, length)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    result = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for begin in range(first, last, BLOCK_T):
        token = begin + tl.arange(0, BLOCK_T)
        there = token < last
        page = tl.load(tables + owner * table_width + token // PAGE, mask=there, other=0)
        slot = page.to(tl.int64) * PAGE + token % PAGE
        source = (slot * num_kv_heads + head)[:, None] * WIDTH + column[None, :]
        mask = there[:, None] & in_head
        k_TD = tl.load(keys + source, mask=mask, other=0)
        v_TD = tl.load(values + source, mask=mask, other=0)
        scores = tl.dot(q_MD, tl.trans(k_TD), input_precision="ieee") * scale
        seen = there[None, :] & (token[None, :] <= position[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, axis=1))
        # A line that has seen nothing yet: -inf - -inf would be NaN.
        base = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(highest - base)
        total = total * fade + tl.sum(weights, axis=1)
        result = result * fade[:, None]
        result += tl.dot(weights.to(v_TD.dtype), v_TD, input_precision="ieee")
        highest = new
    nothing = total == 0
    result = result / tl.where(nothing, 1.0, total)[:, None]
    split_row = split.to(tl.int64) * num_rows + row
    place = (split_row * num_heads + query_head)[:, None] * WIDTH + column[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
    if SPLITS > 1:
        log_sum = tl.where(nothing, float("-inf"), highest + tl.log2(tl.where(nothing, 1.0, total)))
        tl.store(sums + split_row * num_heads + query_head, log_sum, mask=valid)


@triton.jit
def combine_kernel(
    parts, sums, out, num_lines, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out (R, H, D) of the splits' shares, each weighed by its sum; a program takes one head."""
    line = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    log_sum = tl.load(sums + split * num_lines + line, mask=split < SPLITS, other=float("-inf"))
    highest = tl.max(log_sum)
    weight = tl.exp2(log_sum - tl.where(highest == float("-inf"), 0.0, highest))
    weight = weight / tl.maximum(tl.sum(weight), 1e-30)
    mask = (split < SPLITS)[:, None] & (column < WIDTH)[None, :]
    place = (split * num_lines + line)[:, None] * WIDTH + column[None, :]
    part = tl.load(parts + place, mask=mask, other=0)
    # A split that saw nothing may hold anything.
    part = tl.where(weight[:, None] > 0, part, 0.0)
    result = tl.sum(part * weight[:, None], axis=0).to(out.dtype.element_ty)
    tl.store(out + line * WIDTH + column, result, mask=column < WIDTH)


def store(k_RKD: Tensor, v_RKD: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """As `paged.store`."""
    width = keys.shape[2] * keys.shape[3]
    # A row's heads must lie together; rows may be those of a wider matrix.
    k_RKD, v_RKD = (
        x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (k_RKD, v_RKD)
    )
    store_kernel[(len(slots),)](
        k_RKD, v_RKD, keys, values, slots, k_RKD.stride(0), v_RKD.stride(0), width,
        BLOCK=min(1024, triton.next_power_of_2(width)),
    )  # fmt: skip


def attend(q_RHD: Tensor, keys: Tensor, values: Tensor, rows: Rows) -> Tensor:
    """As `paged.attend`; rows of no tile hold anything. `q_RHD` is contiguous."""
    num_rows, num_heads, width = q_RHD.shape
    page, num_kv_heads = keys.shape[1:3]
    splits = rows.splits
    out = torch.empty_like(q_RHD)
    parts, sums = out, out
    if splits > 1:
        parts = torch.empty(splits, *q_RHD.shape, device=q_RHD.device, dtype=torch.float32)
        sums = torch.empty_like(parts[..., 0])
    options = attention_options(num_heads // num_kv_heads, width, rows.tile, page, splits)
    attention_kernel[(len(rows.starts), num_kv_heads, splits)](
        q_RHD, keys, values, *rows[:1], *rows[2:6], parts, sums,
        _LOG2_E * width**-0.5, rows.tables.shape[1], num_rows, num_kv_heads, **options,
    )  # fmt: skip
    if splits > 1:
        combine_kernel[(num_rows * num_heads,)](
            parts, sums, out, num_rows * num_heads, **combine_options(width, splits)
        )
    return out


def attention_options(shared: int, width: int, tile: int, page: int, splits: int) -> dict[str, int]:
    """The constants of `attention_kernel`: no side of a product may be below 16."""
    return {
        "SHARED": shared,
        "WIDTH": width,
        "PAGE": page,
        "SPLITS": splits,
        "BLOCK_M": max(16, triton.next_power_of_2(shared * tile)),
        "BLOCK_T": 64,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
    }


def combine_options(width: int, splits: int) -> dict[str, int]:
    """The constants of `combine_kernel`."""
    sides = {"BLOCK_S": triton.next_power_of_2(splits), "BLOCK_D": triton.next_power_of_2(width)}
    return {"WIDTH": width, "SPLITS": splits, **sides}
