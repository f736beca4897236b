"""Hashes of word n-grams, of whole texts at once."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it is 0 modulo 2^64


class WordHashes:
    """64-bit hashes of words, each computed once; case does not matter."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, words: Iterable[str]) -> NDArray[np.uint64]:
        known = self._known
        found = []
        for word in words:
            value = known.get(word)
            if value is None:
                value = known[word] = xxhash.xxh64_intdigest(word.lower())
            found.append(value)
        return np.array(found, np.uint64)


def ngram_hashes(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hashes (len(words) - n + 1,) of the n-grams that begin at each word."""
    count = max(len(words) - n + 1, 0)
    total = np.zeros(count, np.uint64)
    for offset in range(n):
        total = total * _BASE + words[offset : offset + count]
    return total
