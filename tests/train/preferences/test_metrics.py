"""Accuracy, intervals and calibration against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from puna.train.preferences.metrics import (
    accuracy,
    agreement,
    calibration,
    calibration_error,
    wilson,
)


def test_equal_scores_count_half() -> None:
    assert accuracy([1.0, -2.0, 0.0, 0.5]) == (1 + 0 + 0.5 + 1) / 4


def test_wilson_intervals() -> None:
    # Newcombe (1998), table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((0.8389, 1), abs=5e-5)
    assert wilson(0, 0) == (0, 1)


def test_calibration_by_hand() -> None:
    # Sure to 0.6 of three choices, of which two are right, and to 0.95 of two, one right.
    six, most = math.log(0.6 / 0.4), math.log(0.95 / 0.05)
    curve = calibration([six, -six, six, most, -most])
    assert [each["predicted"] for each in curve] == pytest.approx([0.6, 0.95])
    assert [each["observed"] for each in curve] == pytest.approx([2 / 3, 1 / 2])
    assert [each["pairs"] for each in curve] == [3, 2]
    expected = 3 / 5 * (2 / 3 - 0.6) + 2 / 5 * (0.95 - 0.5)
    assert calibration_error(curve) == pytest.approx(expected)
    # Certainty of 1 belongs to the last bin.
    assert calibration([1000.0]) == [{"predicted": 1.0, "observed": 1.0, "pairs": 1}]


def test_agreement_by_rating() -> None:
    found = agreement([1.0, -1.0, 2.0, 0.0], [0, 0, 3, -1])
    assert found["accuracy"] == 2.5 / 4 and found["pairs"] == 4
    assert found["interval"] == wilson(2.5, 4)
    assert {name: group["accuracy"] for name, group in found["by_rating"].items()} == {
        "significantly_better": 0.5, "negligibly_better": 1, "unrated": 0.5
    }  # fmt: skip
    assert sum(each["pairs"] for each in found["calibration"]) == 4
    with pytest.raises(ValueError, match="1 scores are not finite"):
        agreement([1.0, math.nan], [0, 0])
