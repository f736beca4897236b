"""Ranks that all tests of a session share, and what they found."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import pytest

from tests.parallel.pool import Pool

Report = Callable[[str, Counter[str]], None]
Pools = dict[int, Pool]


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    """By their size; a test that breaks one leaves the next a new one."""
    kept: Pools = {}
    yield kept
    for pool in kept.values():
        pool.close()


def ranks(pools: Pools, size: int) -> Pool:
    if size not in pools or not pools[size].alive:
        pools[size] = Pool(size)
    return pools[size]


@pytest.fixture
def four(pools: Pools) -> Pool:
    """Four ranks, of gloo."""
    return ranks(pools, 4)


@pytest.fixture
def eight(pools: Pools) -> Pool:
    return ranks(pools, 8)


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """Takes differences under a name; says at the end how many there were, and the largest."""
    largest: defaultdict[str, Counter[str]] = defaultdict(Counter)
    count: Counter[str] = Counter()

    def add(name: str, found: Counter[str]) -> None:
        largest[name] |= found
        count[name] += 1

    yield add
    for name, found in largest.items():
        print(f"\n{count[name]} layouts, {name}: largest difference", end=" ")
        print(", ".join(f"of {kind} {value:.2g}" for kind, value in found.items()))
