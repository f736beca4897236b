"""The keyed permutation: a bijection at every size, another one for every key."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from puna.data.permutation import Permutation


@pytest.mark.parametrize("size", [*range(1, 40), 63, 64, 65, 99, 100, 101, 997, 2500])
def test_it_is_a_bijection(size: int) -> None:
    for key in ("0 0 books", "0 1 books"):
        permutation = Permutation(size, key)
        assert sorted(permutation(index) for index in range(size)) == list(range(size))


def test_a_large_one_is_injective_and_takes_no_memory() -> None:
    size = 3_000_000_000_017
    permutation = Permutation(size, "key")
    generator = random.Random(0)
    indices = {generator.randrange(size) for _ in range(5000)} | {0, 1, 2, size - 1}
    images = [permutation(index) for index in indices]
    assert len(set(images)) == len(indices) and all(0 <= image < size for image in images)
    # Neighbours are strewn over the whole range: their mean and spread are those of chance.
    images = [permutation(index) / size for index in range(4000)]
    mean = sum(images) / len(images)
    assert abs(mean - 1 / 2) < 0.02
    assert abs(sum((x - mean) ** 2 for x in images) / len(images) - 1 / 12) < 0.005


def test_each_place_is_equally_likely_over_keys() -> None:
    size, keys = 7, 4200
    counts = Counter(
        (index, Permutation(size, str(key))(index)) for key in range(keys) for index in range(size)
    )
    expected = keys / size
    chi_square = sum((counts[i, j] - expected) ** 2 / expected for i in range(7) for j in range(7))
    assert chi_square < 75  # 36 degrees of freedom: p of 0.0001
    orders = {tuple(Permutation(5, str(key))(i) for i in range(5)) for key in range(2000)}
    assert len(orders) == 120  # every order of 5 comes up


def test_what_is_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to permute"):
        Permutation(0, "")
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match="not among the 5"):
            Permutation(5, "")(wrong)
