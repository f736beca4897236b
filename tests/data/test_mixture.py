"""The mixture is exact: not on average, but after every draw."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from puna.data.mixture import Mixture, whole_weights

CASES: list[list[int]] = [
    [1],
    [1, 1],
    [1, 2],
    [99, 1],
    [5, 3, 2],
    [82, 5, 5, 4, 2, 1, 1],
    [1, 1, 2, 3, 5, 8, 13, 21, 34],  # the deepest tree
    [1] * 7,
    [1000, 1, 1, 1],
]


@pytest.mark.parametrize("weights", CASES, ids=str)
def test_every_source_has_its_share_at_every_draw(weights: list[int]) -> None:
    mixture, total = Mixture(weights), sum(weights)
    bound = Fraction(1, 2) if len(weights) <= 2 else Fraction(2)
    counts = [0] * len(weights)
    for number in range(3 * total):
        assert mixture.counts(number) == counts
        # The next draw is of some source, and is that source's next: none is skipped or repeated.
        source, before = mixture.draw(number)
        assert before == counts[source]
        counts[source] += 1
        for weight, count in zip(weights, counts, strict=True):
            distance = abs(count - Fraction((number + 1) * weight, total))
            assert distance <= bound and distance < 2
        if (number + 1) % total == 0:
            assert counts == [weight * (number + 1) // total for weight in weights]


def test_draws_far_away_are_exact_too() -> None:
    generator = random.Random(0)
    for _ in range(200):
        weights = [generator.randrange(1, 10**9) for _ in range(generator.randrange(1, 40))]
        mixture, total = Mixture(weights), sum(weights)
        number = generator.randrange(10**15)
        before, after = mixture.counts(number), mixture.counts(number + 1)
        source, count = mixture.draw(number)
        assert count == before[source] and sum(before) == number
        assert [b - a for a, b in zip(before, after, strict=True)] == [
            int(i == source) for i in range(len(weights))
        ]
        for weight, drawn in zip(weights, before, strict=True):
            assert abs(drawn - Fraction(number * weight, total)) < 2
        assert mixture.counts(total * 12345) == [12345 * weight for weight in weights]


def test_declared_weights_are_taken_as_they_are_written() -> None:
    assert whole_weights({"a": 0.1, "b": 0.2, "c": 0.7}) == {"a": 1, "b": 2, "c": 7}
    assert whole_weights({"a": 3, "b": 1.5, "c": 0}) == {"a": 2, "b": 1, "c": 0}
    assert whole_weights({"a": 1e-3, "b": 1}) == {"a": 1, "b": 1000}
    assert whole_weights({"a": 0}) == {"a": 0}
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="the weight of a is"):
            whole_weights({"a": wrong, "b": 1})


@pytest.mark.parametrize("weights", [[], [0], [1, -1]], ids=str)
def test_senseless_weights_are_refused(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="weights above 0"):
        Mixture(weights)
