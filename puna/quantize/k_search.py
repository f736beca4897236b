"""Which codes, scales and minimums store blocks of 256 weights with the least squared error. Ours.

In two steps. Each sub-block by itself: a grid of ranges, most of them clipped, gives codes; the
least-squares fit to each set of codes gives a scale (and minimum), and the best fit is kept. Then
the block: its sub-blocks' scales become small integers times an f16 number, all neighbours of the
integers are tried, the f16 numbers are fitted to the codes, and the integers tried once more.

Arrays are (E, S, B): element of a sub-block, sub-block of a block, block. Sums go over elements
and sub-blocks in order and every step is one float32 operation, so that `puna.kernels` arrives at
the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from puna.quantize.block_type import F16_MAX, Bytes, Floats

Doubles = NDArray[np.float64]
Real = TypeVar("Real", np.float32, np.float64)

NEIGHBOURS = (0, -1, 1)
TINY = np.float32(1e-30)  # a scale below has no inverse and all its codes are 0
ROUNDER = np.float32(3 << 22)
DEGENERATE = np.float32(1e-4)  # of a determinant: codes too equal to fit a line to


@dataclass(frozen=True, slots=True)
class Ranged:
    """x ~ d * scale * code - dmin * minimum: codes 0 to `top`, integers 0 to `max_scale`.

    `clips` are the fractions of a sub-block's range that are cut off at either end, all pairs.
    """

    sub_block: int
    top: int
    max_scale: int
    clips: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Signed:
    """x ~ d * scale * (code - zero): codes below 2 * zero, scales -max_scale to max_scale - 1.

    `levels` are how many steps are tried from 0 to a sub-block's largest magnitude.
    """

    sub_block: int
    zero: int
    max_scale: int
    levels: tuple[float, ...]


def search_ranged(
    x: Floats, weights: Floats | None, kind: Ranged
) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
    """d and dmin (B, 1), representable in f16, scales and minimums (B, S), codes (B, 256)."""
    x_ESB = _lanes(x, kind.sub_block)
    w_ESB = None if weights is None else _lanes(weights, kind.sub_block)
    sum_w = _total(w_ESB if w_ESB is not None else np.ones_like(x_ESB))
    sum_wx = _total(_weighted(x_ESB, w_ESB))

    scale, minimum = _start_ranged(x_ESB, w_ESB, sum_w, sum_wx, kind)
    limit = np.float32(kind.max_scale)
    d = _up_to_f16(scale.max(axis=0) / limit)
    dmin = _up_to_f16(minimum.max(axis=0) / limit)
    scales = np.minimum(_round(scale * _inverse(d)), limit)
    minimums = np.minimum(_round(minimum * _inverse(dmin)), limit)
    scales, minimums, error = _try_ranged(x_ESB, w_ESB, d, dmin, scales, minimums, kind)

    codes = _ranged_codes(x_ESB, d * scales, dmin * minimums, kind)
    new_d, new_dmin = _fit_ranged(x_ESB, w_ESB, sum_w, sum_wx, codes, scales, minimums)
    usable = (new_d >= 0) & (new_d <= F16_MAX) & (new_dmin >= 0) & (new_dmin <= F16_MAX)
    new_d = _to_f16_precision(np.where(usable, new_d, d))
    new_dmin = _to_f16_precision(np.where(usable, new_dmin, dmin))
    new_scales, new_minimums, new_error = _try_ranged(
        x_ESB, w_ESB, new_d, new_dmin, scales, minimums, kind
    )
    better = new_error < error
    d, dmin = np.where(better, new_d, d), np.where(better, new_dmin, dmin)
    scales = np.where(better, new_scales, scales)
    minimums = np.where(better, new_minimums, minimums)
    codes = _ranged_codes(x_ESB, d * scales, dmin * minimums, kind)
    return d[:, None], dmin[:, None], _bytes(scales), _bytes(minimums), _code_bytes(codes)


def search_signed(
    x: Floats, weights: Floats | None, kind: Signed
) -> tuple[Floats, NDArray[np.int8], Bytes]:
    """d (B, 1), representable in f16, scales (B, S) and codes (B, 256)."""
    x_ESB = _lanes(x, kind.sub_block)
    w_ESB = None if weights is None else _lanes(weights, kind.sub_block)

    scale = _start_signed(x_ESB, w_ESB, kind)
    # The scale of largest magnitude becomes the negative end, which reaches one further.
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=0)[None], axis=0)[0]
    d = _up_to_f16(np.abs(largest) / np.float32(kind.max_scale))
    d = np.where(largest > 0, -d, d)
    scales = _clamp(_round(scale * _inverse(d)), -kind.max_scale, kind.max_scale - 1)
    scales, error = _try_signed(x_ESB, w_ESB, d, scales, kind)

    codes = _signed_codes(x_ESB, d * scales, kind)
    new_d = _fit_signed(x_ESB, w_ESB, codes, scales)
    usable = (new_d != 0) & (np.abs(new_d) <= F16_MAX)
    new_d = _to_f16_precision(np.where(usable, new_d, d))
    new_scales, new_error = _try_signed(x_ESB, w_ESB, new_d, scales, kind)
    better = new_error < error
    d, scales = np.where(better, new_d, d), np.where(better, new_scales, scales)
    codes = _signed_codes(x_ESB, d * scales, kind) + np.float32(kind.zero)
    return d[:, None], scales.T.astype(np.int8), _code_bytes(codes)


def _start_ranged(
    x_ESB: Floats, w_ESB: Floats | None, sum_w: Floats, sum_wx: Floats, kind: Ranged
) -> tuple[Floats, Floats]:
    """Scale and (positive) minimum (S, B) of the clipped range whose fit errs least."""
    low = np.minimum(x_ESB.min(axis=0), np.float32(0))
    high = x_ESB.max(axis=0)
    width = high - low
    error = np.full_like(low, np.inf)
    best_scale, best_minimum = np.zeros_like(low), np.zeros_like(low)
    for at_low in kind.clips:
        for at_high in kind.clips:
            begin = np.minimum(low + np.float32(at_low) * width, np.float32(0))
            end = high - np.float32(at_high) * width
            scale = (end - begin) * np.float32(1 / kind.top)
            codes = _ranged_codes(x_ESB, scale, np.float32(0) - begin, kind)
            scale, minimum = _fit_line(x_ESB, w_ESB, sum_w, sum_wx, codes, scale)
            new_error = _ranged_error(x_ESB, w_ESB, scale, minimum, kind)
            better = (new_error < error) & (scale >= 0)
            error = np.where(better, new_error, error)
            best_scale = np.where(better, scale, best_scale)
            best_minimum = np.where(better, minimum, best_minimum)
    return best_scale, best_minimum


def _fit_line(
    x_ESB: Floats,
    w_ESB: Floats | None,
    sum_w: Floats,
    sum_wx: Floats,
    codes: Floats,
    scale: Floats,
) -> tuple[Floats, Floats]:
    """Scale and minimum (S, B) of the least squares of x ~ scale * code - minimum.

    No minimum where it would be negative; the `scale` given, and a minimum for it, where the codes
    that count are too equal to fit a line to.
    """
    wc = _weighted(codes, w_ESB)
    sum_wc, sum_wcc, sum_wxc = _total(wc), _total(wc * codes), _total(wc * x_ESB)
    product = sum_w * sum_wcc
    determinant = product - sum_wc * sum_wc
    line = determinant > DEGENERATE * product
    inverse = np.float32(1) / np.where(line, determinant, np.float32(1))
    slope = (sum_w * sum_wxc - sum_wx * sum_wc) * inverse
    offset = (sum_wcc * sum_wx - sum_wc * sum_wxc) * inverse
    through_zero = line & (offset > 0)
    slope = np.where(through_zero, _ratio(sum_wxc, sum_wcc), slope)
    shift = (sum_wx - scale * sum_wc) / sum_w
    below: Floats = np.minimum(np.where(line, offset, shift), np.float32(0))
    return np.where(line, slope, scale), np.float32(0) - below  # not -0


def _start_signed(x_ESB: Floats, w_ESB: Floats | None, kind: Signed) -> Floats:
    """Scale (S, B), of either sign, whose codes fit best."""
    largest = np.abs(x_ESB).max(axis=0)
    best, best_scale = np.zeros_like(largest), np.zeros_like(largest)
    for sign in (1, -1):
        for levels in kind.levels:
            codes = _signed_codes(x_ESB, largest * np.float32(sign / levels), kind)
            wc = _weighted(codes, w_ESB)
            sum_wcc, sum_wxc = _total(wc * codes), _total(wc * x_ESB)
            scale = _ratio(sum_wxc, sum_wcc)
            gain = scale * sum_wxc
            better = gain > best
            best = np.where(better, gain, best)
            best_scale = np.where(better, scale, best_scale)
    return best_scale


def _try_ranged(
    x_ESB: Floats,
    w_ESB: Floats | None,
    d: Floats,
    dmin: Floats,
    scales: Floats,
    minimums: Floats,
    kind: Ranged,
) -> tuple[Floats, Floats, Doubles]:
    """The best of nine neighbouring pairs of integers (S, B), and the blocks' errors (B,)."""
    error = np.full_like(scales, np.inf)
    best_scales, best_minimums = scales, minimums
    for scale_step in NEIGHBOURS:
        for minimum_step in NEIGHBOURS:
            new_scales = _clamp(scales + np.float32(scale_step), 0, kind.max_scale)
            new_minimums = _clamp(minimums + np.float32(minimum_step), 0, kind.max_scale)
            new_error = _ranged_error(x_ESB, w_ESB, d * new_scales, dmin * new_minimums, kind)
            better = new_error < error
            error = np.where(better, new_error, error)
            best_scales = np.where(better, new_scales, best_scales)
            best_minimums = np.where(better, new_minimums, best_minimums)
    return best_scales, best_minimums, _total(error.astype(np.float64))


def _try_signed(
    x_ESB: Floats, w_ESB: Floats | None, d: Floats, scales: Floats, kind: Signed
) -> tuple[Floats, Doubles]:
    """The best of three neighbouring integers (S, B), and the blocks' errors (B,)."""
    error, best_scales = np.full_like(scales, np.inf), scales
    for step in NEIGHBOURS:
        new_scales = _clamp(scales + np.float32(step), -kind.max_scale, kind.max_scale - 1)
        new_error = _signed_error(x_ESB, w_ESB, d * new_scales, kind)
        better = new_error < error
        error = np.where(better, new_error, error)
        best_scales = np.where(better, new_scales, best_scales)
    return best_scales, _total(error.astype(np.float64))


def _fit_ranged(
    x_ESB: Floats,
    w_ESB: Floats | None,
    sum_w: Floats,
    sum_wx: Floats,
    codes: Floats,
    scales: Floats,
    minimums: Floats,
) -> tuple[Floats, Floats]:
    """d and dmin (B,) of least squares for these codes and integers; 0 where there is no such."""
    wc = _weighted(codes, w_ESB)
    sum_wc, sum_wcc = _doubles(_total(wc)), _doubles(_total(wc * codes))
    sum_wxc = _doubles(_total(wc * x_ESB))
    a, b = _doubles(scales), _doubles(minimums)
    aa, ab = _total(a * a * sum_wcc), _total(a * b * sum_wc)
    bb, xb = _total(b * b * _doubles(sum_w)), _total(b * _doubles(sum_wx))
    xa = _total(a * sum_wxc)
    determinant = aa * bb - ab * ab
    both = determinant > 1e-9 * aa * bb
    inverse = 1 / np.where(both, determinant, 1)
    d = np.where(both, (xa * bb - xb * ab) * inverse, _ratio(xa, aa))
    alone = np.where(aa > 0, 0, -_ratio(xb, bb))  # all codes or scales are 0
    dmin = np.where(both, (xa * ab - xb * aa) * inverse, alone)
    return d.astype(np.float32), dmin.astype(np.float32)


def _fit_signed(x_ESB: Floats, w_ESB: Floats | None, codes: Floats, scales: Floats) -> Floats:
    """d (B,) of least squares for these codes and integers; 0 where all codes are 0."""
    wc = _weighted(codes, w_ESB)
    sum_wcc, sum_wxc = _doubles(_total(wc * codes)), _doubles(_total(wc * x_ESB))
    a = _doubles(scales)
    return _ratio(_total(a * sum_wxc), _total(a * a * sum_wcc)).astype(np.float32)


def _ranged_codes(x_ESB: Floats, scale: Floats, minimum: Floats, kind: Ranged) -> Floats:
    return _round(_clamp((x_ESB + minimum) * _inverse(scale), 0, kind.top))


def _ranged_error(
    x_ESB: Floats, w_ESB: Floats | None, scale: Floats, minimum: Floats, kind: Ranged
) -> Floats:
    """Squared error (S, B) of the nearest codes."""
    off = x_ESB - (scale * _ranged_codes(x_ESB, scale, minimum, kind) - minimum)
    return _total(_weighted(off * off, w_ESB))


def _signed_codes(x_ESB: Floats, scale: Floats, kind: Signed) -> Floats:
    """Codes less the zero."""
    return _round(_clamp(x_ESB * _inverse(scale), -kind.zero, kind.zero - 1))


def _signed_error(x_ESB: Floats, w_ESB: Floats | None, scale: Floats, kind: Signed) -> Floats:
    """Squared error (S, B) of the nearest codes."""
    off = x_ESB - scale * _signed_codes(x_ESB, scale, kind)
    return _total(_weighted(off * off, w_ESB))


def _lanes(x: Floats, sub_block: int) -> Floats:
    """Blocks (B, 256) as (E, S, B)."""
    return np.ascontiguousarray(x.reshape(len(x), 256 // sub_block, sub_block).T)


def _code_bytes(codes: Floats) -> Bytes:
    """Codes (E, S, B) as (B, 256)."""
    return codes.T.astype(np.uint8).reshape(codes.shape[2], 256)


def _bytes(integers: Floats) -> Bytes:
    """Integers (S, B) as (B, S)."""
    return integers.T.astype(np.uint8)


def _weighted(values: Floats, w_ESB: Floats | None) -> Floats:
    return values if w_ESB is None else w_ESB * values


def _total(values: NDArray[Real]) -> NDArray[Real]:
    """The sum over the first axis, one after the other from 0."""
    total = np.zeros_like(values[0])
    for part in values:
        total += part
    return total


def _ratio(numerator: NDArray[Real], denominator: NDArray[Real]) -> NDArray[Real]:
    """Their ratio, 0 where the denominator is not above 0."""
    usable = denominator > 0
    ratio = numerator / np.where(usable, denominator, denominator.dtype.type(1))
    return np.where(usable, ratio, denominator.dtype.type(0))


def _inverse(scale: Floats) -> Floats:
    usable = np.abs(scale) > TINY
    inverse = np.float32(1) / np.where(usable, scale, np.float32(1))
    return np.where(usable, inverse, np.float32(0))


def _round(values: Floats) -> Floats:
    """To the nearest integer, ties to even, of magnitudes below 2**22: float32 has no fractions
    near the number that is added."""
    return (values + ROUNDER) - ROUNDER


def _to_f16_precision(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


def _up_to_f16(values: Floats) -> Floats:
    """The least number of f16 that is not below a positive value."""
    halves = values.astype(np.float16)
    above = (halves.view(np.uint16) + np.uint16(1)).view(np.float16)
    return np.where(halves.astype(np.float32) < values, above, halves).astype(np.float32)


def _doubles(values: Floats) -> Doubles:
    return values.astype(np.float64)


def _clamp(values: Floats, low: int, high: int) -> Floats:
    return np.minimum(np.maximum(values, np.float32(low)), np.float32(high))
