"""What scales and offsets of packed weights are, for the kernels that multiply by them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_offset(
    scales, zeros, supers, super_zeros, row, run, half, num_groups, num_supers, mask,
    GROUP: tl.constexpr, OFFSET: tl.constexpr, MIDDLE: tl.constexpr, SUPERS: tl.constexpr,
):  # fmt: skip
    """Scale and offset (N, R) of one half of some runs."""
    place = row * num_groups + (run * 32 + half * 16) // GROUP
    scale = tl.load(scales + place, mask=mask, other=0).to(tl.float32)
    if SUPERS:
        above = row * num_supers + run // 8
        scale *= tl.load(supers + above, mask=mask, other=0).to(tl.float32)
    if OFFSET == 1:
        offset = scale * MIDDLE
    else:
        offset = tl.load(zeros + place, mask=mask, other=0).to(tl.float32)
        if OFFSET == 0:
            offset *= scale
        elif SUPERS:
            offset *= tl.load(super_zeros + above, mask=mask, other=0).to(tl.float32)
    return scale, offset
