"""One row times weights of 4 bits: few instructions a weight, which are the limit before memory is.

Codes are read as words of eight. A code is not shifted down: masked where it stands it is 16**k
times too large, and so is divided out of x, of which all outputs share a copy. That leaves a mask,
a conversion and a multiply-add for each weight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from puna.kernels.triton.scales import scale_offset


@triton.jit
def _sum_of_words(words, x, BLOCK_R: tl.constexpr):
    """Sums (N, R, 1) of code * x over runs, of words (N, R, 4) and x (R, 32).

    Bits 4 k of word t are element 16 (k % 2) + 4 t + k // 2 of a run (`kernels/layouts.py`).
    """
    # Halves h, words t, bytes i1 i0 -> t, i1, i0, h: the last is taken apart first.
    x = tl.permute(tl.reshape(x, (BLOCK_R, 2, 4, 2, 2)), (0, 2, 3, 4, 1))
    low, high = tl.split(x)
    low_0, low_1 = tl.split(low)
    high_0, high_1 = tl.split(high)
    x0, x4 = tl.split(low_0)
    x2, x6 = tl.split(low_1)
    x1, x5 = tl.split(high_0)
    x3, x7 = tl.split(high_1)
    total = (words & 0xF).to(tl.float32) * x0[None, :, :]
    total += (words & 0xF0).to(tl.float32) * (x1 * 2.0**-4)[None, :, :]
    total += (words & 0xF00).to(tl.float32) * (x2 * 2.0**-8)[None, :, :]
    total += (words & 0xF000).to(tl.float32) * (x3 * 2.0**-12)[None, :, :]
    total += (words & 0xF0000).to(tl.float32) * (x4 * 2.0**-16)[None, :, :]
    total += (words & 0xF00000).to(tl.float32) * (x5 * 2.0**-20)[None, :, :]
    total += (words & 0xF000000).to(tl.float32) * (x6 * 2.0**-24)[None, :, :]
    # The last would be negative where it stands.
    total += ((words >> 28) & 0xF).to(tl.float32) * x7[None, :, :]
    return tl.sum(total, axis=2)


@triton.jit
def nibble_row_kernel(
    x, words, scales, zeros, supers, super_zeros, out,
    num_outputs, num_runs, num_groups, num_supers,
    GROUP: tl.constexpr, OFFSET: tl.constexpr, MIDDLE: tl.constexpr, SUPERS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out (O,) = W x (I,); `words` are the codes (O, I / 8), int32."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for begin in range(0, num_runs, BLOCK_R):
        runs = begin + tl.arange(0, BLOCK_R)
        # The weights come from afar: they are asked for first.
        row, run = rows[:, None], runs[None, :]
        mask = (row < num_outputs) & (run < num_runs)
        place = (row * num_runs + run)[:, :, None] * 4 + tl.arange(0, 4)[None, None, :]
        loaded = tl.load(words + place, mask=mask[:, :, None], other=0)
        scale, offset = scale_offset(
            scales, zeros, supers, super_zeros, row, run, 0, num_groups, num_supers, mask,
            GROUP, OFFSET, MIDDLE, SUPERS,
        )  # fmt: skip
        place = runs[:, None] * 32 + tl.arange(0, 32)[None, :]
        x_run = tl.load(x + place, mask=(runs < num_runs)[:, None], other=0).to(tl.float32)
        sums = _sum_of_words(loaded, x_run, BLOCK_R)
        total += scale * sums - offset * tl.sum(x_run, axis=1)[None, :]
    result = tl.sum(total, axis=1).to(out.dtype.element_ty)
    tl.store(out + rows, result, mask=rows < num_outputs)
