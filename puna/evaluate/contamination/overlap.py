"""Which tokens of evaluation samples stand in training text too.

Appendix A.6 of the Llama 2 paper (arXiv 2307.09288): a span of a sample matches one of a training
document if their first 10 tokens are the same, at most 4 of the others differ, and the last one
does not. A token is contaminated if it stands in such a span of at least L tokens.

The paper makes suffix arrays of the training text. Here the 10-grams of the samples are hashed,
and the text streams by: what is held is of the samples' size, whatever the text's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from puna.data.ngrams import HashSet, ngram_hashes

SEED = 10  # tokens at a span's start that are the same
BUDGET = 4  # tokens behind them that may differ
_TOKENS = 1 << 18  # of training text, hashed at once: what fits a processor's cache
_PAIRS = 1 << 20  # places that are followed at once

Ids = NDArray[np.int64]


class Overlap:
    """The longest matching span from each token of `samples`, in all text that was scanned.

    `spans` (N,) are lengths, 0 where no span begins, over the tokens of all samples one after the
    other. `stops` are the ids that part documents, BOS and EOS; samples have none of them.
    """

    def __init__(self, samples: Sequence[Sequence[int]], stops: Sequence[int]) -> None:
        lengths = np.array([len(sample) for sample in samples], np.int64)
        self._tokens = np.fromiter((i for sample in samples for i in sample), np.int64)
        self._stops = np.asarray(stops)
        if np.isin(self._tokens, self._stops).any():
            raise ValueError("a sample holds BOS or EOS, which only part documents")
        self.bounds = np.concatenate(([0], np.cumsum(lengths)))
        self._begin = np.repeat(self.bounds[:-1], lengths)
        self._end = np.repeat(self.bounds[1:], lengths)
        self.spans = np.zeros(len(self._tokens), np.int64)
        hashes = ngram_hashes(self._tokens.astype(np.uint64), SEED)
        places = np.arange(len(hashes))
        (inside,) = np.nonzero(places + SEED <= self._end[: len(hashes)])
        self._places = inside[np.argsort(hashes[inside], kind="stable")]
        values, self._first = np.unique(hashes[self._places], return_index=True)
        self._first = np.append(self._first, len(self._places))
        self._known = HashSet(values)

    def scan(
        self, text: NDArray[np.integer], on_tokens: Callable[[int], None] = lambda count: None
    ) -> None:
        """Follows every match in `text` (T,), whole documents; `on_tokens` gets what was read."""
        for begin in range(0, len(text), _TOKENS):
            chunk = text[begin : begin + _TOKENS + SEED - 1]
            at, found = self._known.find(ngram_hashes(chunk.astype(np.uint64), SEED))
            for ours, theirs in self._pairs(at + begin, found):
                self._follow(text, ours, theirs)
            on_tokens(min(_TOKENS, len(text) - begin))

    def digest(self, texts: Iterable[str]) -> str:
        """What tells these samples and `texts`, names of what is scanned, from others."""
        digest = hashlib.sha256(self._tokens.tobytes() + self.bounds.tobytes())
        for text in texts:
            digest.update(text.encode())
        return digest.hexdigest()

    def contaminated(self, length: int) -> NDArray[np.bool_]:
        """Which tokens (N,) stand in a span of `length` or more."""
        (begins,) = np.nonzero(self.spans >= max(length, 1))
        edges = np.zeros(len(self.spans) + 1, np.int64)
        edges[begins] += 1
        np.subtract.at(edges, begins + self.spans[begins], 1)
        return np.cumsum(edges[:-1]) > 0

    def shares(self, length: int) -> NDArray[np.float64]:
        """The share of contaminated tokens of each sample (S,), 0 for one of no tokens."""
        counted = np.concatenate(([0], np.cumsum(self.contaminated(length))))
        sizes = np.diff(self.bounds)
        return np.diff(counted[self.bounds]) / np.maximum(sizes, 1)

    def _pairs(self, at: Ids, found: Ids) -> Iterator[tuple[Ids, Ids]]:
        """(place in the samples, place in the text) of the same 10-gram, some at a time."""
        counts = self._first[found + 1] - self._first[found]
        parts = np.cumsum(counts) // _PAIRS
        for part in np.split(np.arange(len(at)), np.nonzero(np.diff(parts))[0] + 1):
            theirs = np.repeat(at[part], counts[part])
            firsts = np.repeat(self._first[found[part]], counts[part])
            offsets = np.arange(len(theirs)) - np.repeat(
                np.cumsum(counts[part]) - counts[part], counts[part]
            )
            yield self._places[firsts + offsets], theirs

    def _follow(self, text: NDArray[np.integer], ours: Ids, theirs: Ids) -> None:
        """Notes how far each pair's span goes."""
        # Where the tokens before are the same too, the span that begins there holds this one.
        inner = (ours > self._begin[ours]) & (theirs > 0)
        inner &= self._tokens[ours - 1] == text[theirs - 1]
        # Where a span to the sample's end is known, there is nothing to gain.
        wanted = ~inner & (self.spans[ours] < self._end[ours] - ours)
        ours, theirs = ours[wanted], theirs[wanted]
        length = np.zeros(len(ours), np.int64)
        missed = np.zeros(len(ours), np.int64)
        on = np.arange(len(ours))
        step = 0
        while len(on):
            token = text[theirs[on] + step]
            same = self._tokens[ours[on] + step] == token
            missed[on] += ~same
            length[on[same]] = step + 1
            on = on[(missed[on] <= (0 if step < SEED else BUDGET)) & ~np.isin(token, self._stops)]
            step += 1
            on = on[(ours[on] + step < self._end[ours[on]]) & (theirs[on] + step < len(text))]
        whole = length >= SEED  # the others' hashes alone are the same
        np.maximum.at(self.spans, ours[whole], length[whole])
