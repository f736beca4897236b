"""Codes and words: against a loop over the bits of one long integer."""

from __future__ import annotations

import numpy as np
import pytest

from puna.quantize.packing import BITS, codes_in, pack, unpack, words_for


def bits_of_words(words: np.ndarray, bits: int) -> list[int]:
    """The codes of one row: the words are the digits, least first, of one number."""
    number = sum(int(word) << (32 * place) for place, word in enumerate(words.view(np.uint32)))
    count = len(words) * 32 // bits
    return [(number >> (bits * place)) % 2**bits for place in range(count)]


@pytest.mark.parametrize("bits", BITS)
def test_every_code_is_where_the_bits_say(bits: int) -> None:
    words = np.random.default_rng(bits).integers(-(2**31), 2**31, (5, 6), np.int32)
    codes = unpack(words, bits)
    assert codes.dtype == np.uint8 and codes.shape == (5, 6 * 32 // bits)
    assert [list(row) for row in codes] == [bits_of_words(row, bits) for row in words]
    np.testing.assert_array_equal(pack(codes, bits), words)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(32,), (3, 64), (2, 3, 96)])
def test_round_trip(bits: int, shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, shape).astype(np.uint8)
    words = pack(codes, bits)
    assert words.dtype == np.int32 and words.shape == (*shape[:-1], shape[-1] * bits // 32)
    np.testing.assert_array_equal(unpack(words, bits), codes)


def test_three_bits_straddle_at_values_10_and_21() -> None:
    codes = np.zeros(32, np.uint8)
    codes[10], codes[21] = 0b101, 0b110
    low, middle, high = (int(word) & 0xFFFFFFFF for word in pack(codes, 3))
    assert low == 0b01 << 30  # two bits of value 10, the third begins the next word
    assert middle == 0b1 | 0b0 << 31  # one bit of value 21
    assert high == 0b11


def test_a_view_that_is_not_contiguous() -> None:
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (6, 4), np.int32)
    np.testing.assert_array_equal(unpack(words.T, 4), unpack(words.T.copy(), 4))
    codes = unpack(words, 4)
    np.testing.assert_array_equal(pack(codes[:, ::2], 4), pack(codes[:, ::2].copy(), 4))


def test_counts() -> None:
    assert [codes_in(3, bits) for bits in BITS] == [48, 32, 24, 12]
    assert [words_for(96, bits) for bits in BITS] == [6, 9, 12, 24]
    assert codes_in(4, 3) is None and words_for(48, 3) is None and words_for(9, 8) is None
    assert codes_in(3, 5) is None and words_for(32, 1) is None


@pytest.mark.parametrize(("bits", "count"), [(3, 31), (4, 9), (5, 32), (8, 2)])
def test_what_does_not_fill_words(bits: int, count: int) -> None:
    with pytest.raises(ValueError, match="do not fill"):
        pack(np.zeros(count, np.uint8), bits)


def test_codes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="code 8 does not fit 3 bits"):
        pack(np.full(32, 8, np.uint8), 3)
    with pytest.raises(ValueError, match="2 words"):
        unpack(np.zeros(2, np.int32), 3)
