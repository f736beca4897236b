"""How well a model agrees with people: accuracy with its interval, and calibration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from puna.chat import Message
from puna.data.pairs import TOO_LONG
from puna.data.preferences import RATINGS, Comparison

NUM_BINS = 10  # of the calibration curve; *ours*
_Z = 1.959963984540054  # of a normal variable, 95 % are within


class Scorer(Protocol):
    """A reward model, as `train.scoring` opens it."""

    def score(self, dialogs: Sequence[Sequence[Message]]) -> list[float]: ...

    def fits(self, dialog: Sequence[Message]) -> bool: ...


def accuracy(differences: Sequence[float] | NDArray[np.float64]) -> float:
    """The share of pairs whose chosen answer scores higher; equal scores count half (*ours*)."""
    found = np.asarray(differences)
    return float(np.mean((found > 0) + 0.5 * (found == 0)))


def wilson(successes: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    if not total:
        return 0.0, 1.0
    share, z2 = successes / total, _Z * _Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = (
        _Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    )
    return max(0.0, centre - spread), min(1.0, centre + spread)


def calibration(differences: Sequence[float] | NDArray[np.float64]) -> list[dict[str, float]]:
    """How sure the model is of its own choice, sigmoid |r_1 - r_2|, beside how often that is right.

    Pairs in `NUM_BINS` bins of equal width between 0.5 and 1, those with none left out.
    """
    found = np.asarray(differences, np.float64)
    sure = 1 / (1 + np.exp(-np.abs(found)))
    right = (found > 0) + 0.5 * (found == 0)
    bins = np.minimum((2 * NUM_BINS * (sure - 0.5)).astype(int), NUM_BINS - 1)
    return [
        {
            "predicted": float(sure[bins == number].mean()),
            "observed": float(right[bins == number].mean()),
            "pairs": int((bins == number).sum()),
        }
        for number in range(NUM_BINS)
        if (bins == number).any()
    ]


def calibration_error(curve: Sequence[dict[str, float]]) -> float:
    """The expected one (arXiv 1706.04599): |predicted - observed|, each bin by its pairs."""
    total = sum(each["pairs"] for each in curve)
    return sum(each["pairs"] * abs(each["predicted"] - each["observed"]) for each in curve) / total


def agreement(differences: Sequence[float], ratings: Sequence[int]) -> dict[str, Any]:
    """Everything of this file about pairs: score differences, chosen less rejected, and ratings as
    places in `RATINGS` (-1: none). Accuracy is given of each rating that there is, too."""
    found = np.asarray(differences, np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"{int((~np.isfinite(found)).sum())} scores are not finite")
    curve = calibration(found)
    names = dict(enumerate(RATINGS)) | {-1: "unrated"}
    groups = {names[rating]: found[np.asarray(ratings) == rating] for rating in (0, 1, 2, 3, -1)}
    return _share(found) | {
        "by_rating": {name: _share(group) for name, group in groups.items() if len(group)},
        "calibration_error": calibration_error(curve),
        "calibration": curve,
    }


def ask(
    scorer: Scorer,
    comparisons: Sequence[Comparison],
    *,
    on_pair: Callable[[], None] = lambda: None,
    at_once: int = 64,
) -> dict[str, Any]:
    """`agreement` of a scorer with comparisons; pairs that do not fit its context are left out, and
    counted by reason in `left_out`. ValueError where none fits."""
    differences: list[float] = []
    ratings: list[int] = []
    left_out: Counter[str] = Counter()
    for first in range(0, len(comparisons), at_once):
        part = []
        for each in comparisons[first : first + at_once]:
            on_pair()
            if all(map(scorer.fits, each.dialogs())):
                part.append(each)
            else:
                left_out[TOO_LONG] += 1
        scores = scorer.score([dialog for each in part for dialog in each.dialogs()])
        differences += [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]
        ratings += [-1 if each.rating is None else RATINGS.index(each.rating) for each in part]
    if not differences:
        raise ValueError("no pair fits the context of the reward model")
    return agreement(differences, ratings) | {"left_out": dict(left_out)}


def _share(differences: NDArray[np.float64]) -> dict[str, Any]:
    share, total = accuracy(differences), len(differences)
    return {"accuracy": share, "interval": wilson(share * total, total), "pairs": total}
