"""Two models on the same questions: is one better, by how much, how surely.

Right and wrong are compared by the questions that only one of the two answered rightly (McNemar
1947, exact), shares and other figures by Student's test of the differences. Both ask what the pairs
say; two separate means with their errors would forget that hard questions are hard for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from puna.evaluate.wilson import Z_95

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Paired:
    """`difference` is the mean of b - a with its 95 % interval; `p` two-sided, of no difference.

    `up` and `down` count the questions on which b is better, and worse.
    """

    count: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    up: int
    down: int
    test: str


def paired(a: ArrayLike, b: ArrayLike) -> Paired:
    """Compares figures (N,) of the same N questions: McNemar's test where all are 0 or 1.

    ValueError for fewer than two questions, or different numbers of them.
    """
    before, after = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"{before.shape} and {after.shape} figures are no pairs")
    if len(before) < 2:
        raise ValueError("a comparison needs two questions or more")
    change = after - before
    up, down = int((change > 0).sum()), int((change < 0).sum())
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        test, p = "McNemar, exact", mcnemar(up, down)
        low, high = matched_interval(up, down, len(change))
    else:
        test, (low, high, p) = "Student, paired", student(change)
    return Paired(
        len(change), float(before.mean()), float(after.mean()), float(change.mean()),
        low, high, p, up, down, test,
    )  # fmt: skip


def mcnemar(up: int, down: int) -> float:
    """Two-sided p of `up` changes one way and `down` the other, where both ways are as likely.

    Exact: twice the smaller tail of a binomial distribution of 1/2, at most 1.
    """
    count, term, tail = up + down, 1, 0
    for k in range(min(up, down) + 1):
        tail += term
        term = term * (count - k) // (k + 1)
    return min(1.0, 2 * tail / 2**count)


def matched_interval(up: int, down: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """The interval of the difference of two shares of the same questions.

    Wald's after a half is added to each of the four cells, which holds what it promises for few
    questions too (Agresti & Min, "Simple improved confidence intervals for comparing matched
    proportions", 2005).
    """
    total, change = count + 2, up - down
    middle = change / total
    half = z * math.sqrt(up + down + 1 - change * change / total) / total
    return max(-1.0, middle - half), min(1.0, middle + half)


def student(change: Floats) -> tuple[float, float, float]:
    """The mean's 95 % interval and its two-sided p, by Student's distribution.

    Where all differences are the same there is no spread to judge by: the interval is that one
    value, and p 0, or 1 if it is 0.
    """
    freedom = len(change) - 1
    mean, error = float(change.mean()), float(change.std(ddof=1)) / math.sqrt(len(change))
    if error == 0:
        return mean, mean, float(mean == 0)
    half = t_quantile(0.05, freedom) * error
    return mean - half, mean + half, t_tails(mean / error, freedom)


def t_tails(t: float, freedom: int) -> float:
    """The probability of a Student's t of at least |t| either way."""
    return _beta_share(freedom / (freedom + t * t), freedom / 2, 0.5)


def t_quantile(tails: float, freedom: int) -> float:
    """The t beyond which, either way, `tails` of the distribution lie."""
    low, high = 0.0, 1.0
    while t_tails(high, freedom) > tails:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, freedom) > tails else (low, middle)
    return high


def holm(ps: Sequence[float]) -> list[float]:
    """p-values of several tests at once (Holm 1979): no false finding in 95 % at a level of 5 %."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, so_far = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = so_far
    return adjusted


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22).

    The fraction converges quickly below (a + 1) / (a + b + 2); above, the other side is taken.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    ) / a  # fmt: skip
    # Lentz: ratios of neighbouring numerators and of denominators, whose product is the value.
    above, below = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = below
    for m in range(1, 10_000):
        before = value
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            above, below = 1 + step / above, 1 / (1 + step * below)
            value *= above * below
        if abs(value - before) <= 1e-15 * abs(value):
            return front * value
    raise ArithmeticError(f"I_{x}({a}, {b}) does not converge")
