"""Distributions worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from puna.engine.sampling import Sampling, choose, probabilities

# softmax of these is 4/15, 8/15, 1/15, 2/15
LOGITS = np.log(np.array([4, 8, 1, 2], np.float32))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [4 / 15, 8 / 15, 1 / 15, 2 / 15]),
        # Half the temperature squares the weights, twice it takes their roots.
        ({"temperature": 0.5}, [16 / 85, 64 / 85, 1 / 85, 4 / 85]),
        ({"temperature": 2.0}, np.sqrt([4, 8, 1, 2]) / np.sqrt([4, 8, 1, 2]).sum()),
        ({"temperature": 1e-320}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [4 / 12, 8 / 12, 0, 0]),
        ({"top_k": 3}, [4 / 14, 8 / 14, 0, 2 / 14]),
        ({"top_k": 9}, [4 / 15, 8 / 15, 1 / 15, 2 / 15]),
        # The sorted masses are 8/15, 12/15, 14/15, 1.
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_p": 0.53}, [0, 1, 0, 0]),
        ({"top_p": 0.54}, [4 / 12, 8 / 12, 0, 0]),
        ({"top_p": 0.81}, [4 / 14, 8 / 14, 0, 2 / 14]),
        ({"top_p": 0.94}, [4 / 15, 8 / 15, 1 / 15, 2 / 15]),
        # After top-k 3 the masses are 8/14, 12/14, 1; after top-k 2, 8/12 and 1.
        ({"top_k": 3, "top_p": 0.85}, [4 / 12, 8 / 12, 0, 0]),
        ({"top_k": 3, "top_p": 0.87}, [4 / 14, 8 / 14, 0, 2 / 14]),
        ({"top_k": 2, "top_p": 0.66}, [0, 1, 0, 0]),
        # Temperature first: 64/85 alone reaches 0.75, which 8/15 does not.
        ({"temperature": 0.5, "top_p": 0.75}, [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_probabilities(options: dict[str, Any], expected: Any) -> None:
    sampling = Sampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options)
    np.testing.assert_allclose(probabilities(LOGITS, sampling), expected, atol=1e-6)


def test_ties_go_to_the_lowest_id() -> None:
    level = np.zeros(5, np.float32)
    generator = np.random.default_rng(0)
    assert choose(level, Sampling(temperature=0), generator) == 0
    level[[1, 3]] = 2
    assert choose(level, Sampling(temperature=0), generator) == 1
    kept = probabilities(np.zeros(5, np.float32), Sampling(1.0, top_k=2, top_p=1.0))
    assert kept.tolist() == [0.5, 0.5, 0, 0, 0]


def test_draws_follow_the_distribution_and_the_seed() -> None:
    sampling = Sampling(temperature=1.0, top_k=3, top_p=1.0)
    first = np.random.default_rng(1)
    draws = [choose(LOGITS, sampling, first) for _ in range(3000)]
    second = np.random.default_rng(1)
    assert draws == [choose(LOGITS, sampling, second) for _ in range(3000)]
    shares = np.bincount(draws, minlength=4) / len(draws)
    np.testing.assert_allclose(shares, [4 / 14, 8 / 14, 0, 2 / 14], atol=0.03)
    assert shares[2] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
    ],
)
def test_senseless_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
