"""A scorer in the middle of whose work a producer is killed."""

from __future__ import annotations

from collections.abc import Sequence

from puna.train.sampling import Dialog, Scorer


def dying(scorer: Scorer, at: int) -> Scorer:
    """The scorer, broken off at its call number `at`, counted from 1."""
    calls = 0

    def score(dialogs: Sequence[Dialog]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return scorer(dialogs)

    return score
