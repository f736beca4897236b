"""What of a request was passed on, when it is asked for once more; and sums over replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from puna.engine.async_llm import EngineStoppedError
from puna.engine.output import Delta
from puna.engine.statistics import Statistics

_CURRENT = ("num_running", "num_waiting", "num_pages", "num_pages_used")


class Told:
    """Which deltas of a request were passed on."""

    def __init__(self) -> None:
        self._tokens: dict[int, list[tuple[int, ...]]] = {}  # of each output's deltas
        self._places: Counter[int] = Counter()

    def again(self) -> None:
        """From here on the same come once more, from the first."""
        self._places.clear()

    def is_new(self, delta: Delta) -> bool:
        """Whether it was not passed on before; EngineStoppedError where another one was."""
        told = self._tokens.setdefault(delta.index, [])
        place = self._places[delta.index]
        self._places[delta.index] += 1
        if place == len(told):
            told.append(delta.token_ids)
            return True
        if told[place] != delta.token_ids:
            raise EngineStoppedError("a replica died, and another one goes on differently")
        return False


def total(living: Iterable[Statistics], ever: Iterable[Statistics]) -> Statistics:
    """Of several engines: how those that live stand, and what all that ever were have done."""
    now, all_time = list(living), list(ever)
    sums = {
        name: sum(getattr(each, name) for each in (now if name in _CURRENT else all_time))
        for name in Statistics._fields
    }
    return Statistics(**sums)
