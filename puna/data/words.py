"""Ids of much text, fast: each word is tokenized once and remembered.

A byte-pair merge joins neighbours whose joined piece is in the vocabulary. Where no piece has a
word's end before a space, none can join across words, and the ids of a text are those of its words.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from puna.data.manifest import token_dtype
from puna.tokenizer import PieceType, Tokenizer, Vocabulary
from puna.tokenizer.vocabulary import SPACE

# Both cut between two characters by these alone, so a piece that is not cut alone never is.
# The finer one first: with lines apart, fewer words are distinct.
_CUTS = (
    re.compile(rf"[ {SPACE}]*[^ {SPACE}\n]+|[ {SPACE}]+|\n+"),
    re.compile(rf"[ {SPACE}]*[^ {SPACE}]+|[ {SPACE}]+"),
)
_MOST = 1 << 21  # characters of the words that are remembered: some 250,000 words, 50 MB


class WordTokenizer:
    """What `Tokenizer.encode` gives, as arrays, with a memory for words where that is exact.

    It may not be exact where text is normalised first (a charsmap, extra spaces removed), where
    unknown characters would join into one id (no byte pieces), where a piece spans words or is
    found before all others (user-defined); such a vocabulary has each text encoded whole.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._dtype = token_dtype(len(vocabulary))
        self._cut = _cut(vocabulary)
        self._prefix = " " if vocabulary.add_space_prefix else ""
        # The words have their spaces before them; a text that is not cut gets its prefix as ever.
        bare = vocabulary if self._cut is None else replace(vocabulary, add_space_prefix=False)
        self._encode = Tokenizer(bare).encode_batch
        self._ids: dict[str, bytes] = {}
        self._size = 0  # characters of the words in it

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids of `text` without BOS and EOS, (T,), in the type that shards have."""
        if self._cut is None:
            return np.asarray(self._encode([text])[0], self._dtype)
        words = self._cut.findall(self._prefix + text) if text else []
        if self._size > _MOST:
            self._ids.clear()
            self._size = 0
        if new := set(words).difference(self._ids):
            self._remember(list(new))
        return np.frombuffer(b"".join(map(self._ids.__getitem__, words)), self._dtype)

    def _remember(self, words: list[str]) -> None:
        rows = self._encode(words)  # at once: a call costs as much as some ten words
        ends = itertools.accumulate(len(row) * self._dtype.itemsize for row in rows)
        raw = np.fromiter(itertools.chain.from_iterable(rows), self._dtype).tobytes()
        begin = 0
        for word, end in zip(words, ends, strict=True):
            self._ids[word] = raw[begin:end]
            begin = end
        self._size += sum(map(len, words))


def _cut(vocabulary: Vocabulary) -> re.Pattern[str] | None:
    """What finds the words of a text; None where a text has to be encoded whole."""
    if (
        vocabulary.charsmap
        or vocabulary.remove_extra_spaces
        or PieceType.BYTE not in vocabulary.types
        or PieceType.USER_DEFINED in vocabulary.types
    ):
        return None
    joined = (PieceType.NORMAL, PieceType.UNUSED)
    pieces = [
        piece
        for piece, kind in zip(vocabulary.pieces, vocabulary.types, strict=True)
        if kind in joined
    ]
    for pattern in _CUTS:
        if all(pattern.fullmatch(piece) for piece in pieces):
            return pattern
    return None
