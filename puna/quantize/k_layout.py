"""GGML's blocks of 256, Q2_K to Q6_K: where their codes and scales lie, and what they stand for.

A block is cut into sub-blocks of 16 or 32 weights, each with a small integer scale (and, in Q2_K,
Q4_K and Q5_K, a minimum) that an f16 number of the block multiplies:

    x = (d * scale) * code - (dmin * minimum)      Q2_K, Q4_K, Q5_K
    x = (d * scale) * (code - zero)                Q3_K, Q6_K

Codes are laid out in planes: byte i of a plane holds, at different shifts, weights that are 32 (or
64) apart.
"""

from __future__ import annotations

import numpy as np

from puna.quantize.block_type import Bytes, Floats, Integers, from_f16, split_fields


def dequantize_q2_k(blocks: Bytes) -> Floats:
    scales, low, d, dmin = split_fields(blocks, 16, 64, 2, 2)
    codes = unpack(low, 2, 32).reshape(-1, 16, 16)
    return _ranged(from_f16(d), from_f16(dmin), scales & 15, scales >> 4, codes)


def dequantize_q3_k(blocks: Bytes) -> Floats:
    high, low, packed, d = split_fields(blocks, 32, 64, 12, 2)
    codes = unpack(low, 2, 32) | (unpack(high, 1, 32) << 2)
    return _signed(from_f16(d), _unpack_signed_scales(packed), codes, 4)


def dequantize_q4_k(blocks: Bytes) -> Floats:
    d, dmin, packed, low = split_fields(blocks, 2, 2, 12, 128)
    codes = unpack(low, 4, 32).reshape(-1, 8, 32)
    return _ranged(from_f16(d), from_f16(dmin), *_unpack_scales(packed), codes)


def dequantize_q5_k(blocks: Bytes) -> Floats:
    d, dmin, packed, high, low = split_fields(blocks, 2, 2, 12, 32, 128)
    codes = (unpack(low, 4, 32) | (unpack(high, 1, 32) << 4)).reshape(-1, 8, 32)
    return _ranged(from_f16(d), from_f16(dmin), *_unpack_scales(packed), codes)


def dequantize_q6_k(blocks: Bytes) -> Floats:
    low, high, scales, d = split_fields(blocks, 128, 64, 16, 2)
    codes = unpack(low, 4, 64) | (unpack(high, 2, 32) << 4)
    return _signed(from_f16(d), scales.view(np.int8), codes, 32)


def pack_q2_k(d: Bytes, dmin: Bytes, scales: Bytes, minimums: Bytes, codes: Bytes) -> Bytes:
    """Stored blocks of f16 fields d, dmin (B, 2), scales, minimums (B, 16), codes (B, 256)."""
    return np.concatenate([scales | (minimums << 4), pack(codes, 2, 32), d, dmin], axis=1)


def pack_q3_k(d: Bytes, scales: Integers, codes: Bytes) -> Bytes:
    """Stored blocks of an f16 field (B, 2), scales int8 (B, 16) and codes (B, 256)."""
    positive = (scales + 32).astype(np.uint8)
    packed = [pack(positive & 15, 4, 8), pack(positive >> 4, 2, 4)]
    parts = [pack(codes >> 2, 1, 32), pack(codes & 3, 2, 32), *packed, d]
    return np.concatenate(parts, axis=1)


def pack_q4_k(d: Bytes, dmin: Bytes, scales: Bytes, minimums: Bytes, codes: Bytes) -> Bytes:
    """Stored blocks of f16 fields d, dmin (B, 2), scales, minimums (B, 8), codes (B, 256)."""
    return np.concatenate([d, dmin, _pack_scales(scales, minimums), pack(codes, 4, 32)], axis=1)


def pack_q5_k(d: Bytes, dmin: Bytes, scales: Bytes, minimums: Bytes, codes: Bytes) -> Bytes:
    """As `pack_q4_k`, with codes up to 31."""
    planes = [pack(codes >> 4, 1, 32), pack(codes & 15, 4, 32)]
    return np.concatenate([d, dmin, _pack_scales(scales, minimums), *planes], axis=1)


def pack_q6_k(d: Bytes, scales: Integers, codes: Bytes) -> Bytes:
    """Stored blocks of an f16 field (B, 2), scales int8 (B, 16) and codes (B, 256)."""
    planes = [pack(codes & 15, 4, 64), pack(codes >> 4, 2, 32)]
    return np.concatenate([*planes, scales.astype(np.int8).view(np.uint8), d], axis=1)


def unpack(plane: Bytes, bits: int, stride: int) -> Bytes:
    """Numbers (B, n) of `bits` bits of bytes (B, n * bits / 8).

    Each `stride` bytes hold 8 / bits times `stride` numbers: first all in the lowest bits, then
    all in the next.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    numbers = (plane.reshape(len(plane), plane.shape[1] // stride, 1, stride) >> shifts) & np.uint8(
        (1 << bits) - 1
    )
    return numbers.reshape(len(plane), plane.shape[1] * 8 // bits)


def pack(numbers: Integers, bits: int, stride: int) -> Bytes:
    """The inverse of `unpack`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    size = numbers.shape[1] * bits // 8
    planes = numbers.reshape(len(numbers), size // stride, 8 // bits, stride) << shifts
    return np.bitwise_or.reduce(planes, axis=2).reshape(len(numbers), size).astype(np.uint8)


def _ranged(
    d: Floats, dmin: Floats, scales: Integers, minimums: Integers, codes: Integers
) -> Floats:
    """Values of codes (B, sub-blocks, weights)."""
    scale = (d * scales.astype(np.float32))[:, :, None]
    minimum = (dmin * minimums.astype(np.float32))[:, :, None]
    return (scale * codes.astype(np.float32) - minimum).reshape(len(codes), 256)


def _signed(d: Floats, scales: Integers, codes: Integers, zero: int) -> Floats:
    """Values of codes (B, 256) in sub-blocks of 16."""
    scale = (d * scales.astype(np.float32))[:, :, None]
    values = scale * (codes.reshape(-1, 16, 16).astype(np.float32) - zero)
    return values.reshape(len(codes), 256)


def _unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """6-bit scales and minimums (B, 8) each, of 12 bytes.

    Bytes 0-3 hold scales 0-3, bytes 4-7 minimums 0-3; scales and minimums 4-7 have their low four
    bits in bytes 8-11 and their high two at the top of bytes 0-7.
    """
    first, low = packed[:, :8], packed[:, 8:]
    top = (first >> 2) & 0x30
    scales = np.concatenate([first[:, :4] & 63, (low & 15) | top[:, :4]], axis=1)
    minimums = np.concatenate([first[:, 4:] & 63, (low >> 4) | top[:, 4:]], axis=1)
    return scales, minimums


def _pack_scales(scales: Bytes, minimums: Bytes) -> Bytes:
    """The inverse of `_unpack_scales`."""
    first = np.concatenate([scales[:, :4], minimums[:, :4]], axis=1)
    top = np.concatenate([scales[:, 4:], minimums[:, 4:]], axis=1) >> 4
    low = (scales[:, 4:] & 15) | ((minimums[:, 4:] & 15) << 4)
    return np.concatenate([first | (top << 6), low], axis=1)


def _unpack_signed_scales(packed: Bytes) -> Integers:
    """Q3_K's scales int8 (B, 16) of 12 bytes: low four bits in eight bytes, high two in four."""
    low = unpack(packed[:, :8], 4, 8)
    high = unpack(packed[:, 8:], 2, 4)
    return (low | (high << 4)).astype(np.int8) - np.int8(32)
