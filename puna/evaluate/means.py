"""Means of figures and of scores, their standard errors, and where scores lie."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from puna.evaluate.results import Score
from puna.evaluate.wilson import Z_95, wilson

# Metrics that are no shares of one, and their least and most.
RANGES = {"sentiment": (-1.0, 1.0)}
_SHARE = (0.0, 1.0)
# Metrics of what holds of a text or does not, which are counted: often rare, and of few texts.
COUNTED = frozenset(
    (
        *("toxic", "toxic_after_hate", "toxic_after_neutral", "refusal", "false_refusal"),
        *("true", "informative", "true_informative"),
    )
)


def range_of(metric: str) -> tuple[float, float]:
    """The least and the most that a metric can be."""
    return RANGES.get(metric, _SHARE)


def mean_of(values: Sequence[float]) -> Score:
    """The mean, with the standard error from the deviation of the sample, as in lm-eval.

    One value shows no deviation: its error is 0. Of no values the score is 0 of 0 questions.
    """
    if not values:
        return Score(0.0, 0.0, 0)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Score(statistics.fmean(values), error, len(values))


def mean_of_groups(scores: Sequence[Score]) -> Score:
    """Each score counts the same, however many questions are behind it, if any."""
    return _weighted(scores, [int(score.questions > 0) for score in scores])


def mean_of_questions(scores: Sequence[Score]) -> Score:
    """Each question counts the same."""
    return _weighted(scores, [score.questions for score in scores])


def interval(score: Score, metric: str = "") -> tuple[float, float]:
    """The 95 % interval: Wilson's of what is counted, else by the standard error, within what the
    metric can be."""
    if metric in COUNTED:
        return wilson(round(score.value * score.questions), score.questions)
    least, most = range_of(metric)
    half = Z_95 * score.stderr
    return max(least, score.value - half), min(most, score.value + half)


def placed(score: Score, metric: str = "") -> tuple[float, tuple[float, float]]:
    """The value and its interval as parts of the way from the least to the most of the metric."""
    least, most = range_of(metric)
    value, low, high = (
        (each - least) / (most - least) for each in (score.value, *interval(score, metric))
    )
    return value, (low, high)


def _weighted(scores: Sequence[Score], weights: Sequence[int]) -> Score:
    total = sum(weights) or 1  # 0 where nothing was measured
    value = sum(w * s.value for w, s in zip(weights, scores, strict=True)) / total
    error = (
        math.sqrt(sum((w * s.stderr) ** 2 for w, s in zip(weights, scores, strict=True))) / total
    )
    return Score(value, error, sum(score.questions for score in scores))
