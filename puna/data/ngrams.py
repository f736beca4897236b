"""Hashes of n-grams, of whole texts at once, and which of them are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it is 0 modulo 2^64


def ngram_hashes(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hashes (len(words) - n + 1,) of the n-grams that begin at each word."""
    count = max(len(words) - n + 1, 0)
    total = np.zeros(count, np.uint64)
    for offset in range(n):
        total = total * _BASE + words[offset : offset + count]
    return total


class HashSet:
    """Which hashes are in a sorted array of them: two tables of some of their bits say no to most.

    A search for each would jump through gigabytes; the tables have 8 to 16 bytes for each one.
    """

    def __init__(self, values: NDArray[np.uint64]) -> None:
        self.values = values
        bits = max(len(values), 1).bit_length() + 2
        self._shift = np.uint64(64 - bits)
        self._first, self._second = np.zeros((2, 1 << bits), bool)
        self._first[values >> self._shift] = True
        self._second[values * _BASE >> self._shift] = True

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(at, where): `hashes[at]` are in it, as `values[where]`."""
        (maybe,) = np.nonzero(self._first[hashes >> self._shift])
        maybe = maybe[self._second[hashes[maybe] * _BASE >> self._shift]]
        where = np.searchsorted(self.values, hashes[maybe])
        where[where == len(self.values)] = 0
        found = self.values[where] == hashes[maybe]
        return maybe[found], where[found]
