"""An n-gram model with modified interpolated Kneser-Ney smoothing: the yardstick of a network.

Chen & Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1999), section
4.1.6. The highest order counts occurrences, each lower one the different tokens that stand before
an n-gram; three discounts an order come from its counts of counts; below the single tokens all are
equally likely.

An n-gram is its number among those of its length, and a longer one the number of its beginning and
a token: one integer whatever the vocabulary. Counting is a sort, looking up a search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
# Where they cannot be made of the counts of counts; KenLM's --discount_fallback has the same.
FALLBACK = (0.5, 1.0, 1.5)


@dataclass(frozen=True, slots=True)
class _Order:
    """The n-grams of one length n.

    `keys`: their beginning's number among those of n - 1 times the vocabulary's size, plus their
    last token; sorted, an n-gram's place is its number, and -1 the number of one that is not there.
    `counts` of each; `discounts` for counts of 0, 1, 2, 3 and more. `totals` and `left` are of a
    beginning: the counts of what follows it, and what the discounts take of them. All have a last
    entry for number -1.
    """

    keys: Ids
    counts: Ids
    discounts: Floats
    totals: Ids
    left: Floats


class KneserNey:
    """A model of `windows` (N, T), token ids from 0 to `vocab_size` - 1.

    No n-gram spans two windows. The first token of a window is only seen, not predicted, as in
    training a network. ValueError for ids outside the vocabulary, or windows of fewer than two
    tokens.
    """

    def __init__(self, windows: Ids, vocab_size: int, *, order: int = 5) -> None:
        if order < 1:
            raise ValueError(f"order must be 1 or more, not {order}")
        self.vocab_size, self.order = vocab_size, order
        self._check(windows)
        keys, occurrences, suffixes = _ngrams(windows, vocab_size, order)
        counts = [
            occurrences if n == order else np.bincount(suffixes[n], minlength=len(keys[n - 1]))
            for n in range(1, order + 1)
        ]
        sizes = [1, *map(len, keys)]
        self._orders = [
            _finished(keys[n], counts[n], vocab_size, num_beginnings=sizes[n]) for n in range(order)
        ]

    @property
    def discounts(self) -> list[tuple[float, float, float]]:
        """Of each order, single tokens first: what is taken of counts of 1, 2, and 3 or more."""
        return [
            (float(found[1]), float(found[2]), float(found[3]))
            for found in (order.discounts for order in self._orders)
        ]

    @property
    def num_ngrams(self) -> list[int]:
        """How many different n-grams there are of each order."""
        return [len(order.keys) - 1 for order in self._orders]

    def logprobs(self, windows: Ids) -> Floats:
        """Log-probabilities (N, T - 1), in nats, of all tokens of `windows` (N, T) but the first.

        Each is predicted from the `order` - 1 tokens before it, or all of its window's where these
        are fewer.
        """
        self._check(windows)
        probabilities = np.full((len(windows), windows.shape[1] - 1), 1 / self.vocab_size)
        # The number of the n - 1 tokens before each place.
        before = np.zeros_like(windows)
        for n, order in enumerate(self._orders, 1):
            tokens = windows[:, n - 1 :]
            beginnings = before[:, : tokens.shape[1]]
            before = _find(order.keys, beginnings, tokens, self.vocab_size)
            # A window's first token has a number, for longer n-grams, but is not predicted.
            places = slice(1 if n == 1 else 0, None)
            beginning, number = beginnings[:, places], before[:, places]
            lower = probabilities[:, max(n - 2, 0) :]
            total = order.totals[beginning]
            own = order.counts[number] - order.discounts[np.minimum(order.counts[number], 3)]
            mixed = (own + order.left[beginning] * lower) / np.maximum(total, 1)
            lower[...] = np.where(total > 0, mixed, lower)
        return np.log(probabilities)

    def _check(self, windows: Ids) -> None:
        if windows.ndim != 2 or windows.shape[1] < 2:
            raise ValueError(f"windows are (N, T) with T of 2 or more, not {windows.shape}")
        if windows.size and not 0 <= windows.min() <= windows.max() < self.vocab_size:
            raise ValueError(
                f"ids from {windows.min()} to {windows.max()} do not fit a vocabulary of "
                f"{self.vocab_size}"
            )


def _ngrams(windows: Ids, vocab_size: int, order: int) -> tuple[list[Ids], Ids, list[Ids]]:
    """Keys of each order, how often those of the highest occur, and of each n-gram of order n + 1
    the number of its last n tokens, by n (nothing for 0).

    All tokens are single tokens' keys. Of these, the first of a window is no occurrence.
    """
    keys = [np.arange(vocab_size)]
    numbers, occurrences = windows, np.bincount(windows[:, 1:].ravel(), minlength=vocab_size)
    suffixes: list[Ids] = [np.empty(0, np.int64)]
    for n in range(2, order + 1):
        joined = numbers[:, :-1] * vocab_size + windows[:, n - 1 :]
        place = np.argsort(joined, axis=None)
        ordered = joined.ravel()[place]
        is_new = np.ones(len(ordered), bool)
        is_new[1:] = ordered[1:] != ordered[:-1]
        keys.append(ordered[is_new])
        suffixes.append(numbers[:, 1:].ravel()[place[is_new]])
        numbers = np.empty_like(joined)
        numbers.ravel()[place] = np.cumsum(is_new) - 1
        occurrences = np.diff(np.append(np.flatnonzero(is_new), len(ordered)))
    return keys, occurrences, suffixes


def _finished(keys: Ids, counts: Ids, vocab_size: int, *, num_beginnings: int) -> _Order:
    discounts = _discounts(counts)
    beginnings = keys // vocab_size
    totals = np.bincount(beginnings, counts, num_beginnings + 1).astype(np.int64)
    taken = discounts[np.minimum(counts, 3)]
    left = np.bincount(beginnings, taken, num_beginnings + 1).astype(np.float64)
    last = np.iinfo(np.int64).max  # above all keys: a search ends there
    return _Order(np.append(keys, last), np.append(counts, 0), discounts, totals, left)


def _discounts(counts: Ids) -> Floats:
    """What is taken of counts of 0, 1, 2, and 3 or more (equation 26 of the paper).

    A few tokens may have odd counts of counts: none of some, or such as would take nothing, or more
    than there is.
    """
    of = [int((counts == value).sum()) for value in range(1, 5)]
    if not all(of):
        return np.array([0.0, *FALLBACK])
    share = of[0] / (of[0] + 2 * of[1])
    found = [n - (n + 1) * share * of[n] / of[n - 1] for n in (1, 2, 3)]
    usable = all(0 < discount <= n for n, discount in enumerate(found, 1))
    return np.array([0.0, *(found if usable else FALLBACK)])


def _find(keys: Ids, beginnings: Ids, tokens: Ids, vocab_size: int) -> Ids:
    """Numbers of n-grams by their beginning's number and their last token."""
    wanted = beginnings * vocab_size + tokens
    places = np.searchsorted(keys, wanted)
    return np.where(keys[places] == wanted, places, -1)
