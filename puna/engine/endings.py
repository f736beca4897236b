"""How likely a model finds each of several endings of one context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puna.engine.sampling import Logits, TokenLogprobs, logprobs_of


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of an ending: the log-probability (natural) of its tokens together, and whether each of them
    is the likeliest where it stands.
    """

    logprob: float
    is_greedy: bool


class Endings:
    """The endings of a context of `length` tokens, and what has been found of their tokens.

    What is found again, after a sequence was interrupted, takes the place of what there was.
    """

    def __init__(self, length: int, endings: Sequence[Sequence[int]]) -> None:
        self.length, self.ids = length, [list(ending) for ending in endings]
        self._found: list[list[TokenLogprobs | None]] = [[None] * len(ids) for ids in self.ids]

    def begin(self, logits_V: Logits) -> None:
        """What follows the context; all endings begin there."""
        for index in range(len(self.ids)):
            self.add(index, self.length, logits_V)

    def add(self, index: int, position: int, logits_V: Logits) -> None:
        """The logits of what stands at a position behind the context, in ending number `index`."""
        place = position - self.length
        self._found[index][place] = logprobs_of(logits_V, self.ids[index][place], 0)

    @property
    def likelihoods(self) -> list[Likelihood]:
        """Of each ending, when all its tokens were found."""
        whole = [[each for each in found if each is not None] for found in self._found]
        assert [len(found) for found in whole] == [len(ids) for ids in self.ids]
        return [
            Likelihood(sum(each.logprob for each in found), all(each.rank == 1 for each in found))
            for found in whole
        ]
