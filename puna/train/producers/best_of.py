"""What the best of K samples is worth: the paper's figure of rejection sampling (section 3.2.3).

With N samples of a prompt, the mean over all subsets of K of them needs no subset: a subset's
j-th smallest reward is the i-th of all in C(i-1, j-1) C(N-i, K-j) of the C(N, K).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

Curve = dict[str, Any]


def subset_weights(size: int, count: int, place: int) -> list[float]:
    """Of each of `size` values in rising order: how likely it is the one at `place` (1 is the
    smallest) of `count` that are drawn without putting back."""
    if not 1 <= place <= count <= size:
        raise ValueError(f"there is no place {place} among {count} of {size} values")
    return [
        comb(i - 1, place - 1) * comb(size - i, count - place) / comb(size, count)
        for i in range(1, size + 1)
    ]


def expected_best(rewards: Sequence[float], count: int) -> float:
    """The mean, over all subsets of `count` rewards, of the highest: an unbiased estimate of
    best-of-`count` from all the samples."""
    weights = subset_weights(len(rewards), count, count)
    return float(np.dot(weights, np.sort(np.asarray(rewards, np.float64))))


def expected_median(rewards: Sequence[float], count: int) -> float:
    """As `expected_best`, of the median; that of an even number is the mean of its middle two."""
    middle = [(count + 1) // 2, count // 2 + 1]
    weights = np.mean([subset_weights(len(rewards), count, place) for place in middle], axis=0)
    return float(np.dot(weights, np.sort(np.asarray(rewards, np.float64))))


def best_of_curve(rewards_PN: NDArray[np.float64]) -> Curve:
    """Rewards of N samples of each of P prompts -> for K = 1 ... N the means over prompts of the
    best and the median of K, and the standard error of the former (0 of one prompt)."""
    prompts, size = rewards_PN.shape
    rising_PN = np.sort(rewards_PN, axis=1)
    counts = range(1, size + 1)
    best_KN = np.array([subset_weights(size, k, k) for k in counts])
    middle_KN = np.array(
        [
            np.add(subset_weights(size, k, (k + 1) // 2), subset_weights(size, k, k // 2 + 1)) / 2
            for k in counts
        ]
    )
    best_PK = rising_PN @ best_KN.T
    deviation_K = best_PK.std(axis=0, ddof=1) if prompts > 1 else np.zeros(size)
    return {
        "k": list(counts),
        "max": best_PK.mean(axis=0).tolist(),
        "max_standard_error": (deviation_K / np.sqrt(prompts)).tolist(),
        "median": (rising_PN @ middle_KN.T).mean(axis=0).tolist(),
    }


def best_temperature(curves: Mapping[float, Curve]) -> float:
    """The temperature whose best of all its samples is worth most; of equals the lowest."""
    return min(curves, key=lambda temperature: (-curves[temperature]["max"][-1], temperature))
