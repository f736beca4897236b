"""Codes of 2, 3, 4 or 8 bits <-> the 32-bit words that GPTQ files hold, least significant first.

The words of a row are one stream of bits, so 8 codes of b bits are b bytes; a 3-bit code may lie
in two words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.int32]
Codes = NDArray[np.uint8]

BITS = (2, 3, 4, 8)


def codes_in(num_words: int, bits: int) -> int | None:
    """How many codes fill a row of words; None if such a row ends within one."""
    count, rest = divmod(num_words * 32, bits)
    return None if rest or bits not in BITS else count


def words_for(num_codes: int, bits: int) -> int | None:
    """How many words a row of codes fills; None if the last is not full."""
    count, rest = divmod(num_codes * bits, 32)
    return None if rest or bits not in BITS else count


def unpack(words: Words, bits: int) -> Codes:
    """int32 (..., W) -> uint8 (..., W * 32 / bits)."""
    num_codes = codes_in(words.shape[-1], bits)
    if num_codes is None:
        raise ValueError(f"{words.shape[-1]} words do not hold whole codes of {bits} bits")
    raw = np.ascontiguousarray(words, "<i4").view(np.uint8).reshape(*words.shape[:-1], -1, bits)
    codes = np.empty((*raw.shape[:-1], 8), np.uint8)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        value = raw[..., byte] >> shift
        if shift + bits > 8:
            value |= raw[..., byte + 1] << (8 - shift)
        np.bitwise_and(value, (1 << bits) - 1, out=codes[..., place])
    return codes.reshape(*words.shape[:-1], num_codes)


def pack(codes: Codes, bits: int) -> Words:
    """The inverse of `unpack`; ValueError unless the codes fill the words and fit the bits."""
    num_words = words_for(codes.shape[-1], bits)
    if num_words is None:
        raise ValueError(f"{codes.shape[-1]} codes of {bits} bits do not fill 32-bit words")
    if codes.size and codes.max() >> bits:
        raise ValueError(f"the code {codes.max()} does not fit {bits} bits")
    groups = codes.reshape(*codes.shape[:-1], -1, 8)
    raw = np.zeros((*groups.shape[:-1], bits), np.uint8)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        raw[..., byte] |= groups[..., place] << shift
        if shift + bits > 8:
            raw[..., byte + 1] |= groups[..., place] >> (8 - shift)
    return raw.reshape(*codes.shape[:-1], num_words * 4).view("<i4")
