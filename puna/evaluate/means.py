"""Means of scores, with the errors that come of theirs, and where scores lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

from puna.evaluate.results import Score
from puna.evaluate.wilson import Z_95

# Metrics that are no shares of one, and their least and most.
RANGES = {"sentiment": (-1.0, 1.0)}
_SHARE = (0.0, 1.0)


def range_of(metric: str) -> tuple[float, float]:
    """The least and the most that a metric can be."""
    return RANGES.get(metric, _SHARE)


def mean_of_groups(scores: Sequence[Score]) -> Score:
    """Each score counts the same, however many questions are behind it."""
    return _weighted(scores, [1] * len(scores))


def mean_of_questions(scores: Sequence[Score]) -> Score:
    """Each question counts the same."""
    return _weighted(scores, [score.questions for score in scores])


def interval(score: Score, metric: str = "") -> tuple[float, float]:
    """The 95 % interval by the standard error, within what the metric can be."""
    least, most = range_of(metric)
    half = Z_95 * score.stderr
    return max(least, score.value - half), min(most, score.value + half)


def _weighted(scores: Sequence[Score], weights: Sequence[int]) -> Score:
    total = sum(weights)
    value = sum(w * s.value for w, s in zip(weights, scores, strict=True)) / total
    error = (
        math.sqrt(sum((w * s.stderr) ** 2 for w, s in zip(weights, scores, strict=True))) / total
    )
    return Score(value, error, sum(score.questions for score in scores))
