"""What of a request was passed on, when it is asked for once more; and sums over replicas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from puna.engine.async_llm import EngineStoppedError
from puna.engine.output import Delta
from puna.engine.statistics import Statistics

_CURRENT = ("num_running", "num_waiting", "num_pages", "num_pages_used")


@dataclass(slots=True)
class _Output:
    """One output as it was passed on, and how far it has come again."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False
    again: tuple[int, int] = (0, 0)  # tokens, characters


class Delivered:
    """What of a request was passed on.

    Where one answer puts a boundary between deltas, another one may have none; the text up to a
    token is the same in both.
    """

    def __init__(self) -> None:
        self._outputs: dict[int, _Output] = {}

    def again(self) -> None:
        """From here on the same comes once more, from the beginning."""
        for output in self._outputs.values():
            output.again = 0, 0

    def rest(self, delta: Delta) -> Delta | None:
        """What of a delta was not passed on before, None for nothing.

        Raises EngineStoppedError where something else was.
        """
        output = self._outputs.setdefault(delta.index, _Output())
        tokens, chars = output.again
        output.again = tokens + len(delta.token_ids), chars + len(delta.text)
        known_tokens = tuple(output.tokens[tokens : output.again[0]])
        known_text = output.text[chars : output.again[1]]
        known = len(known_tokens)
        if delta.token_ids[:known] != known_tokens or not delta.text.startswith(known_text):
            raise EngineStoppedError("a replica died, and another one goes on differently")
        new = replace(
            delta,
            text=delta.text[len(known_text) :],
            token_ids=delta.token_ids[known:],
            logprobs=delta.logprobs[known:],
        )
        if output.ended or not (new.token_ids or new.text or new.finish_reason):
            return None
        output.tokens += new.token_ids
        output.text += new.text
        output.ended = new.finish_reason is not None
        return new


def total(living: Iterable[Statistics], ever: Iterable[Statistics]) -> Statistics:
    """Of several engines: how those that live stand, and what all that ever were have done."""
    now, all_time = list(living), list(ever)
    sums = {
        name: sum(getattr(each, name) for each in (now if name in _CURRENT else all_time))
        for name in Statistics._fields
    }
    return Statistics(**sums)
