"""The adapters that an engine has loaded: names -> slots of its runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from puna.engine.batch import Runner
from puna.formats.adapters import Pair


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an adapter is. `number` counts what was ever loaded: what another adapter of the same
    name or slot computed is not this one's."""

    index: int
    number: int


NO_ADAPTER = Slot(-1, 0)


class Adapters:
    """Loads adapters into a runner and finds them by name."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._slots: dict[str, Slot] = {}
        self._numbers = count(1)

    @property
    def names(self) -> list[str]:
        return list(self._slots)

    def load(self, name: str, pairs: Mapping[str, Pair]) -> None:
        """ValueError where there is one of this name, which may be in use."""
        if name in self._slots:
            raise ValueError(f"there is an adapter {name!r} already; unload it first")
        taken = {slot.index for slot in self._slots.values()}
        index = next(index for index in count() if index not in taken)
        self._runner.load_adapter(index, pairs)
        self._slots[name] = Slot(index, next(self._numbers))

    def unload(self, name: str) -> None:
        """ValueError where there is none of this name."""
        slot = self.find(name)
        del self._slots[name]
        self._runner.unload_adapter(slot.index)

    def find(self, name: str | None) -> Slot:
        """The slot of an adapter, or of None; ValueError where there is none of this name."""
        if name is None:
            return NO_ADAPTER
        if name not in self._slots:
            loaded = ", ".join(map(repr, self._slots)) or "none"
            raise ValueError(f"no adapter {name!r}; loaded: {loaded}")
        return self._slots[name]
