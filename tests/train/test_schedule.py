"""Learning rates worked out by hand."""

from __future__ import annotations

import pytest

from puna.train.schedule import cosine


def rates(warmup: int, total: int, final_fraction: float = 0.1) -> list[float]:
    options = {"peak": 1.0, "warmup": warmup, "total": total, "final_fraction": final_fraction}
    return [cosine(step, **options) for step in range(total)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("warmup", "total", "expected"),
    [
        # Four steps up; then from 1 to 0.1 over the angles 0, 60, 120, 180 degrees.
        (4, 8, [0.25, 0.5, 0.75, 1.0, 1.0, 0.775, 0.325, 0.1]),
        # No warm-up; angles 0, 90, 180.
        (0, 3, [1.0, 0.55, 0.1]),
        (2, 2, [0.5, 1.0]),
        (1, 2, [1.0, 1.0]),
        (0, 1, [1.0]),
    ],
)
def test_cosine(warmup: int, total: int, expected: list[float]) -> None:
    assert rates(warmup, total) == pytest.approx(expected)


def test_cosine_of_the_paper() -> None:
    """Llama 2 7B: 2000 steps up to 3e-4, down to a tenth at the end."""
    options = {"peak": 3e-4, "warmup": 2000, "total": 500_000, "final_fraction": 0.1}
    steps = (0, 999, 1999, 2000, 251_000, 499_999, 600_000)
    found = [cosine(step, **options) for step in steps]  # type: ignore[arg-type]
    expected = [1.5e-7, 1.5e-4, 3e-4, 3e-4, 1.65e-4, 3e-5, 3e-5]
    assert found == pytest.approx(expected, rel=1e-4)
