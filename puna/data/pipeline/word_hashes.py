"""Hashes of words, which `puna.data.ngrams` makes those of n-grams of."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

WORD = re.compile(r"\w+")


class WordHashes:
    """64-bit hashes of words, each computed once; case does not matter."""

    def __init__(self) -> None:
        self._known = _Known()

    def of(self, words: Sequence[str]) -> NDArray[np.uint64]:
        return np.fromiter(map(self._known.__getitem__, words), np.uint64, len(words))


class _Known(dict[str, int]):
    def __missing__(self, word: str) -> int:
        value = self[word] = xxhash.xxh64_intdigest(word.lower())
        return value
