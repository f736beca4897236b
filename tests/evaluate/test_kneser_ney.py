"""The n-gram model against one that is written down with dictionaries and loops."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from puna.evaluate.kneser_ney import FALLBACK, KneserNey

VOCAB = 11


def made_windows(seed: int, rows: int, length: int) -> NDArray[np.int64]:
    """Tokens that depend on the two before them, so that n-grams come again."""
    generator = np.random.default_rng(seed)
    windows = generator.integers(0, VOCAB, (rows, length))
    for place in range(2, length):
        usual = (2 * windows[:, place - 1] + windows[:, place - 2]) % VOCAB
        windows[:, place] = np.where(generator.random(rows) < 0.7, usual, windows[:, place])
    return windows


class Plain:
    """The same model, one n-gram after another."""

    def __init__(
        self, windows: Sequence[Sequence[int]], order: int, vocab_size: int = VOCAB
    ) -> None:
        self.order, self.vocab_size = order, vocab_size
        seen: dict[int, Counter[tuple[int, ...]]] = {n: Counter() for n in range(1, order + 1)}
        for row in windows:
            for end in range(2, len(row) + 1):  # the first token is no target
                for n in range(1, min(order, end) + 1):
                    seen[n][tuple(row[end - n : end])] += 1
        self.counts = {order: seen[order]}
        for n in range(1, order):
            before: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in seen[n + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[n] = Counter({gram: len(tokens) for gram, tokens in before.items()})
        self.discounts = {n: self.made_discounts(self.counts[n]) for n in self.counts}

    @staticmethod
    def made_discounts(counts: Counter[tuple[int, ...]]) -> list[float]:
        of = Counter(counts.values())
        if not all(of[value] for value in (1, 2, 3, 4)):
            return list(FALLBACK)
        y = of[1] / (of[1] + 2 * of[2])
        raw = [value - (value + 1) * y * of[value + 1] / of[value] for value in (1, 2, 3)]
        return raw if all(0 < d <= n for n, d in enumerate(raw, 1)) else list(FALLBACK)

    def probability(self, context: tuple[int, ...], token: int) -> float:
        n = len(context) + 1
        lower = self.probability(context[1:], token) if context else 1 / self.vocab_size
        followers = {g: c for g, c in self.counts[n].items() if g[:-1] == context}
        if not followers:
            return lower
        discounts = [0.0, *self.discounts[n]]
        taken = sum(discounts[min(count, 3)] for count in followers.values())
        own = followers.get((*context, token), 0)
        return (own - discounts[min(own, 3)] + taken * lower) / sum(followers.values())

    def probabilities(self, windows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of all tokens but the first of each window, (N, T - 1)."""
        rows: list[list[int]] = windows.tolist()
        return np.array([
            [
                self.probability(tuple(row[max(0, place - self.order + 1) : place]), row[place])
                for place in range(1, len(row))
            ]
            for row in rows
        ])  # fmt: skip


@pytest.mark.parametrize(("order", "length"), [(1, 20), (2, 20), (3, 20), (5, 20), (5, 3)])
def test_it_equals_plain_loops(order: int, length: int) -> None:
    trained, asked = made_windows(0, 30, length), made_windows(1, 6, length + 1)
    plain = Plain(trained.tolist(), order)
    found = KneserNey(trained, VOCAB, order=order).logprobs(asked)
    assert np.exp(found) == pytest.approx(plain.probabilities(asked), rel=1e-12)


def test_discounts_are_those_of_the_counts_of_counts() -> None:
    trained = made_windows(0, 200, 40)
    model, plain = KneserNey(trained, VOCAB, order=4), Plain(trained.tolist(), 4)
    assert model.discounts == [pytest.approx(plain.discounts[n]) for n in (1, 2, 3, 4)]
    assert model.discounts[0] == FALLBACK  # all pieces have more than four different neighbours
    assert model.discounts[3] != FALLBACK
    assert model.num_ngrams[2] == len(Plain(trained.tolist(), 3).counts[3])


def test_probabilities_sum_to_one() -> None:
    model = KneserNey(made_windows(0, 30, 20), VOCAB)
    for beginning in made_windows(2, 8, 6):
        asked = np.repeat(beginning[None], VOCAB, axis=0)
        asked[:, -1] = range(VOCAB)
        assert np.exp(model.logprobs(asked)[:, -1]).sum() == pytest.approx(1, abs=1e-12)


def test_without_text_all_tokens_are_equally_likely() -> None:
    model = KneserNey(np.empty((0, 9), np.int64), VOCAB)
    np.testing.assert_allclose(model.logprobs(made_windows(0, 2, 7)), -math.log(VOCAB))


def test_five_tokens_of_a_large_vocabulary_are_told_apart() -> None:
    vocab_size = 1_000_003  # five need 100 bits
    spread = np.arange(VOCAB) * (vocab_size // VOCAB)
    trained, asked = spread[made_windows(0, 30, 20)], spread[made_windows(1, 2, 20)]
    plain = Plain(trained.tolist(), 5, vocab_size)
    found = KneserNey(trained, vocab_size).logprobs(asked)
    assert np.exp(found) == pytest.approx(plain.probabilities(asked), rel=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="ids from 0 to 12 do not fit a vocabulary of 11"):
        KneserNey(np.array([[0, 12]]), VOCAB)
    with pytest.raises(ValueError, match="T of 2 or more"):
        KneserNey(np.array([[1], [2]]), VOCAB)
    with pytest.raises(ValueError, match="order must be 1 or more"):
        KneserNey(np.array([[1, 2]]), VOCAB, order=0)
