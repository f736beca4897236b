"""The windows of one source: its shards end to end, cut into pieces of the context length."""

from __future__ import annotations

import bisect
import itertools
import threading

import numpy as np
from numpy.typing import NDArray

from puna.data.shards import ShardSet


class Windows:
    """Windows of `context_length` + 1 tokens of a source; they overlap by one token.

    So each token but the first is a target once, up to a rest at the end that fills no window. A
    window may span shards: where shards end changes nothing. A shard is mapped when the first
    window of it is read.
    """

    def __init__(self, shards: ShardSet, source: str, context_length: int) -> None:
        self._shards, self.context_length = shards, context_length
        self._of_source = [s for s in shards.manifest.shards if s.source == source]
        # Where each shard begins in the source, and where the last one ends.
        self._begins = list(
            itertools.accumulate((shard.num_tokens for shard in self._of_source), initial=0)
        )
        self._mapped: dict[int, NDArray[np.unsignedinteger]] = {}
        self._lock = threading.Lock()  # training and evaluation may read at once

    @property
    def num_tokens(self) -> int:
        return self._begins[-1]

    def __len__(self) -> int:
        return max(self.num_tokens - 1, 0) // self.context_length

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """Window `index`, (context_length + 1,); IndexError outside range(len(self))."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        out = np.empty(self.context_length + 1, np.int64)
        begin = index * self.context_length
        number = bisect.bisect_right(self._begins, begin) - 1
        at = 0
        while at < len(out):
            offset = begin + at - self._begins[number]
            piece = self._tokens(number)[offset : offset + len(out) - at]
            out[at : at + len(piece)] = piece
            at += len(piece)
            number += 1
        return out

    def _tokens(self, number: int) -> NDArray[np.unsignedinteger]:
        with self._lock:
            if number not in self._mapped:
                self._mapped[number] = self._shards.tokens(self._of_source[number])
            return self._mapped[number]
