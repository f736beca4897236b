"""Confidence intervals."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # of a normal distribution's middle 95 %


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (JASA 22, 1927); of no trials, 0 to 1."""
    if trials == 0:
        return 0.0, 1.0
    share, weight = successes / trials, _Z**2 / trials
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
