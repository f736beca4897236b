"""Paired tests: worked out by hand, by enumeration, and as scipy has them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from puna.evaluate.paired import holm, matched_interval, mcnemar, paired, t_quantile, t_tails


def test_mcnemar_by_hand() -> None:
    # 1 of 6 or fewer heads: (1 + 6) / 64, both ways 14 / 64.
    assert mcnemar(1, 5) == mcnemar(5, 1) == 14 / 64
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(0, 10) == 2 / 1024


@pytest.mark.parametrize("changed", [1, 4, 9])
def test_mcnemar_by_enumeration(changed: int) -> None:
    """Of all ways in which the changed questions could have changed, as uneven ones."""
    for up in range(changed + 1):
        ways = [sum(way) for way in itertools.product((0, 1), repeat=changed)]
        as_uneven = [n for n in ways if abs(2 * n - changed) >= abs(2 * up - changed)]
        assert mcnemar(up, changed - up) == pytest.approx(len(as_uneven) / len(ways), abs=1e-15)


def test_mcnemar_of_many() -> None:
    stats = pytest.importorskip("scipy.stats")
    for up, down in ((300, 350), (5000, 5200), (7000, 6000)):
        theirs = stats.binomtest(up, up + down).pvalue
        assert mcnemar(up, down) == pytest.approx(theirs, rel=1e-9)


def test_student_as_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom, t in itertools.product((1, 2, 7, 199, 14041), (0.0, 0.3, 1.96, -5.0, 30.0)):
        assert t_tails(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-9)
        assert t_quantile(0.05, freedom) == pytest.approx(stats.t.isf(0.025, freedom), rel=1e-9)
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    ours, theirs = paired(a, b), stats.ttest_rel(b, a)
    low, high = theirs.confidence_interval()
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.pvalue, low, high), rel=1e-9)


def test_student_by_hand() -> None:
    # t of one degree of freedom is Cauchy's: P(|t| > 1) = 1/2.
    assert t_tails(1.0, 1) == pytest.approx(0.5, abs=1e-12)
    # Differences 0.1 and 0.3: mean 0.2, error 0.1, t = 2, P = 1 - 2 atan(2) / pi.
    found = paired([0.0, 0.5], [0.1, 0.8])
    assert found.test == "Student, paired" and found.difference == pytest.approx(0.2)
    assert found.p == pytest.approx(1 - 2 * math.atan(2) / math.pi, rel=1e-9)
    half = math.tan(0.475 * math.pi) * 0.1  # Cauchy's quantile
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half), rel=1e-9)


def test_shares_of_the_same_questions() -> None:
    a, b = [1, 1, 0, 0, 0, 0, 0, 0, 0, 1], [1, 0, 1, 1, 1, 1, 1, 0, 0, 1]
    found = paired(a, b)
    assert (found.a, found.b, found.up, found.down) == (0.3, 0.7, 5, 1)
    assert found.difference == pytest.approx(0.4) and found.p == 14 / 64
    assert found.test == "McNemar, exact"
    # Agresti and Min: 4 / 12, and sqrt(5 + 1 + 1 - 16 / 12) / 12 as its error.
    half = 1.959963984540054 * math.sqrt(7 - 16 / 12) / 12
    assert (found.low, found.high) == pytest.approx((1 / 3 - half, 1 / 3 + half), rel=1e-12)
    low, high = matched_interval(0, 0, 5)
    assert low == -high < 0  # not certain of what five questions did not show


def test_no_spread() -> None:
    same = paired([0.25, 0.5], [0.25, 0.5])
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    always = paired([0.25, 0.5], [0.5, 0.75])
    assert (always.low, always.high, always.p) == (0.25, 0.25, 0.0)


def test_no_pairs() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="two questions or more"):
        paired([1], [0])


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, and never less than the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
