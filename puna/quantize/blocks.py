"""GGML's blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, to float32 and back.

A block is an f16 scale d, in the `_1` types an f16 minimum m, and 32 codes q: d * (q - zero) or
d * q + m. Byte i of the 4-bit codes holds elements i and i + 16; bit i of the 32-bit word in a Q5
block is element i's fifth bit. The codes are chosen as GGML chooses them, byte for byte.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.quantize.block_type import (
    F16_MAX,
    BlockType,
    Bytes,
    Floats,
    Integers,
    from_f16,
    split_fields,
    to_f16,
)


def dequantize_q4_0(blocks: Bytes) -> Floats:
    d, low = split_fields(blocks, 2, 16)
    return from_f16(d) * (_nibbles(low).astype(np.float32) - 8)


def dequantize_q4_1(blocks: Bytes) -> Floats:
    d, m, low = split_fields(blocks, 2, 2, 16)
    return from_f16(d) * _nibbles(low).astype(np.float32) + from_f16(m)


def dequantize_q5_0(blocks: Bytes) -> Floats:
    d, high, low = split_fields(blocks, 2, 4, 16)
    codes = _nibbles(low) | (_bits(high) << 4)
    return from_f16(d) * (codes.astype(np.float32) - 16)


def dequantize_q5_1(blocks: Bytes) -> Floats:
    d, m, high, low = split_fields(blocks, 2, 2, 4, 16)
    codes = _nibbles(low) | (_bits(high) << 4)
    return from_f16(d) * codes.astype(np.float32) + from_f16(m)


def dequantize_q8_0(blocks: Bytes) -> Floats:
    d, codes = split_fields(blocks, 2, 32)
    return codes.view(np.int8).astype(np.float32) * from_f16(d)


def quantize_q4_0(x: Floats, weights: Floats | None = None) -> Bytes:
    """The weight of largest magnitude becomes code 0, d * -8; the others round to nearest."""
    d, codes = _signed_codes(x, 8)
    return np.concatenate([to_f16(d), _packed_nibbles(codes)], axis=1)


def quantize_q4_1(x: Floats, weights: Floats | None = None) -> Bytes:
    """The smallest weight becomes code 0, the largest 15."""
    d, m, codes = _ranged_codes(x, 15)
    return np.concatenate([to_f16(d), to_f16(m), _packed_nibbles(codes)], axis=1)


def quantize_q5_0(x: Floats, weights: Floats | None = None) -> Bytes:
    """As Q4_0, with 32 levels."""
    d, codes = _signed_codes(x, 16)
    fields = [to_f16(d), _packed_bits(codes >> 4), _packed_nibbles(codes & 15)]
    return np.concatenate(fields, axis=1)


def quantize_q5_1(x: Floats, weights: Floats | None = None) -> Bytes:
    """As Q4_1, with 32 levels."""
    d, m, codes = _ranged_codes(x, 31)
    fields = [to_f16(d), to_f16(m), _packed_bits(codes >> 4), _packed_nibbles(codes & 15)]
    return np.concatenate(fields, axis=1)


def quantize_q8_0(x: Floats, weights: Floats | None = None) -> Bytes:
    """Scale max|x| / 127; codes round half away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    inverse, defined = _inverse(d)
    scaled = (x * inverse).astype(np.float64)  # in f32, 0.49999997 + 0.5 would be 1
    codes = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5) * defined
    return np.concatenate([to_f16(d), codes.astype(np.int8).view(np.uint8)], axis=1)


def _signed_codes(x: Floats, zero: int) -> tuple[Floats, Bytes]:
    """Scales (B, 1) and codes such that x ~ d * (code - zero)."""
    place = np.abs(x).argmax(axis=1, keepdims=True)
    d = np.take_along_axis(x, place, axis=1) / np.float32(-zero)
    inverse, defined = _inverse(d)
    codes = np.trunc(x * inverse + np.float32(zero + 0.5)) * defined
    return d, np.minimum(codes, 2 * zero - 1).astype(np.uint8)


def _ranged_codes(x: Floats, top: int) -> tuple[Floats, Floats, Bytes]:
    """Scales, minimums (B, 1) and codes such that x ~ d * code + m.

    Of -0 and +0 the first is the minimum, as in GGML.
    """
    m = np.take_along_axis(x, x.argmin(axis=1, keepdims=True), axis=1)
    maximum = np.take_along_axis(x, x.argmax(axis=1, keepdims=True), axis=1)
    d = (maximum - m) / np.float32(top)
    inverse, defined = _inverse(d)
    codes = np.trunc((x - m) * inverse + np.float32(0.5)) * defined
    return d, m, np.minimum(codes, top).astype(np.uint8)


def _inverse(d: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """1 / d and whether it is a float32; where not, and where d is 0, 0 in its place.

    A scale whose inverse overflows is 0 as f16: its codes stand for nothing, and GGML has 0 there.
    """
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(d == 0, np.float32(0), 1 / d)
    defined = np.isfinite(inverse)
    return np.where(defined, inverse, np.float32(0)), defined


def _nibbles(low: Bytes) -> Bytes:
    """4-bit codes (B, 32) of their bytes (B, 16)."""
    return np.concatenate([low & 15, low >> 4], axis=1)


def _packed_nibbles(codes: Integers) -> Bytes:
    return (codes[:, :16] | (codes[:, 16:] << 4)).astype(np.uint8)


def _bits(high: Bytes) -> Bytes:
    """Bits (B, 32) of their bytes (B, 4)."""
    return np.unpackbits(high, axis=1, bitorder="little")


def _packed_bits(bits: Integers) -> Bytes:
    return np.packbits(bits, axis=1, bitorder="little")


# The limits: an f16 scale must reach the largest weight, an f16 minimum must be able to be it.
BLOCKS = (
    BlockType("q4_0", 32, 18, 8 * F16_MAX, dequantize_q4_0, quantize_q4_0),
    BlockType("q4_1", 32, 20, F16_MAX, dequantize_q4_1, quantize_q4_1),
    BlockType("q5_0", 32, 22, 16 * F16_MAX, dequantize_q5_0, quantize_q5_0),
    BlockType("q5_1", 32, 24, F16_MAX, dequantize_q5_1, quantize_q5_1),
    BlockType("q8_0", 32, 34, 127 * F16_MAX, dequantize_q8_0, quantize_q8_0),
)
