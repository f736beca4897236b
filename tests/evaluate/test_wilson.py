"""Wilson's interval against values worked out elsewhere."""

from __future__ import annotations

import pytest

from puna.evaluate.wilson import wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), table I, method 3: published to four places.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("count", [1, 3, 4, 7, 45, 1600])
def test_no_rounding_puts_the_share_outside(count: int) -> None:
    assert wilson(0, count)[0] == 0.0 and wilson(count, count)[1] == 1.0


def test_nothing_was_tried() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
