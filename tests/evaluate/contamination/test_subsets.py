"""Subsets and their Z: by hand, and as the paper prints them."""

from __future__ import annotations

import numpy as np
import pytest

from puna.evaluate.contamination.subsets import Subset, has_helped, subsets


def test_by_hand() -> None:
    # Mean 1/2, deviation 1/2. At 0.2 a sample is not clean any more, at 0.8 it is dirty.
    figures = np.array([0.0, 0.0, 1.0, 1.0])
    found = subsets(figures, np.array([0.0, 0.19, 0.2, 0.8]))
    assert found == (
        Subset("clean", 2, 0.0, pytest.approx(-1 / 0.5**0.5)),
        Subset("not clean", 2, 1.0, pytest.approx(1 / 0.5**0.5)),
        Subset("not dirty", 3, pytest.approx(1 / 3), pytest.approx(-(3**0.5) / 3)),
        Subset("dirty", 1, 1.0, pytest.approx(1.0)),
    )
    assert not has_helped(found)


def test_nothing_to_tell() -> None:
    found = subsets(np.array([1.0, 1.0]), np.array([0.0, 0.1]))
    assert found[0] == Subset("clean", 2, 1.0, None)
    assert found[1] == Subset("not clean", 0, None, None)
    assert not has_helped(found)


def test_as_the_paper() -> None:
    """Table 51, HellaSwag, 70B, L = 40: numbers and means of the subsets, and their Z.

    Its means have one decimal, which leaves a quarter of a unit in Z.
    """
    rows = {"clean": (7391, 0.800, -5.73), "dirty": (848, 0.922, 7.42),
            "not clean": (2651, 0.895, 9.56), "not dirty": (9194, 0.816, -2.27)}  # fmt: skip
    middle = 10042 - 7391 - 848
    right = [round(7391 * 0.800), 0, round(848 * 0.922)]
    right[1] = round(9194 * 0.816) - right[0]
    figures = np.concatenate(
        [np.arange(n) < k for n, k in zip((7391, middle, 848), right, strict=True)]
    ).astype(float)
    found = subsets(figures, np.repeat([0.0, 0.5, 1.0], (7391, middle, 848)))
    for subset in found:
        count, mean, z = rows[subset.name]
        assert subset.count == count
        assert subset.mean == pytest.approx(mean, abs=0.005)
        assert subset.z == pytest.approx(z, abs=0.25)
    assert has_helped(found)


def test_one_side_is_not_enough() -> None:
    rng = np.random.default_rng(0)
    shares = np.repeat([0.0, 0.5, 1.0], 400)
    helped = np.concatenate([rng.random(400) < p for p in (0.3, 0.6, 0.9)]).astype(float)
    assert has_helped(subsets(helped, shares))
    middle = np.concatenate([rng.random(400) < p for p in (0.3, 0.9, 0.6)]).astype(float)
    assert not has_helped(subsets(middle, shares))
    assert not has_helped(subsets(1 - helped, shares))
