"""The worth of the best of K against sums over all subsets, and by hand."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest

from puna.train.producers.best_of import (
    best_of_curve,
    best_temperature,
    expected_best,
    expected_median,
    subset_weights,
)


def test_by_hand() -> None:
    # Pairs of 1, 2, 4: (1, 2), (1, 4), (2, 4).
    assert expected_best([4, 1, 2], 2) == pytest.approx((2 + 4 + 4) / 3)
    assert expected_median([4, 1, 2], 2) == pytest.approx((1.5 + 2.5 + 3) / 3)
    assert expected_best([4, 1, 2], 1) == pytest.approx(7 / 3)
    assert expected_best([4, 1, 2], 3) == 4
    assert expected_median([4, 1, 2], 3) == 2


@pytest.mark.parametrize("count", range(1, 8))
def test_is_the_mean_over_all_subsets(count: int) -> None:
    rewards = np.random.default_rng(0).normal(size=7).tolist()
    subsets = list(itertools.combinations(rewards, count))
    assert expected_best(rewards, count) == pytest.approx(statistics.mean(map(max, subsets)))
    assert expected_median(rewards, count) == pytest.approx(
        statistics.mean(map(statistics.median, subsets))
    )


def test_a_curve_is_the_mean_over_prompts() -> None:
    rewards = np.random.default_rng(1).normal(size=(3, 6))
    curve = best_of_curve(rewards)
    assert curve["k"] == [1, 2, 3, 4, 5, 6]
    for at, count in enumerate(curve["k"]):
        best = [expected_best(row.tolist(), count) for row in rewards]
        assert curve["max"][at] == pytest.approx(np.mean(best))
        assert curve["max_standard_error"][at] == pytest.approx(statistics.stdev(best) / 3**0.5)
        medians = [expected_median(row.tolist(), count) for row in rewards]
        assert curve["median"][at] == pytest.approx(np.mean(medians))
    assert best_of_curve(rewards[:1])["max_standard_error"] == [0.0] * 6


def test_many_samples_do_not_overflow() -> None:
    assert sum(subset_weights(1000, 500, 250)) == pytest.approx(1)
    assert expected_best(list(range(1000)), 1) == pytest.approx(499.5)


@pytest.mark.parametrize(("count", "place"), [(0, 0), (4, 1), (2, 3)])
def test_places_that_are_none(count: int, place: int) -> None:
    with pytest.raises(ValueError, match="no place"):
        subset_weights(3, count, place)


def test_the_best_temperature() -> None:
    curves = {t: {"max": [9.0, top]} for t, top in ((1.2, 3.0), (0.8, 3.0), (1.0, 2.0))}
    assert best_temperature(curves) == 0.8
