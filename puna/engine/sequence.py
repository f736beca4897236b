"""One sequence of tokens that is being generated."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from puna.engine.batch import Draw
from puna.engine.pages import chain


@dataclass(eq=False, slots=True)
class Sequence:
    """Ids of prompt and output, and how far their keys and values are in pages.

    `order` is (number of the request, number of the output): who came first is served first.
    `origin` names the weights and the adapter; only sequences of one origin share pages.
    """

    order: tuple[int, int]
    ids: list[int]
    prompt_length: int
    origin: bytes = b""
    adapter: int = -1  # its slot in the runner, -1 for none
    # All rows of the prompt from this position on are wanted, not just what follows it, so none of
    # these may be skipped; None: only that.
    wanted_from: int | None = None
    # What is wanted of these are hidden states, and nothing follows.
    wants_hidden: bool = False
    # How the token of a number in the output is drawn inside a step, where it is.
    draw: Callable[[int], Draw | None] | None = None
    pages: list[int] = field(default_factory=list)
    length: int = 0  # positions whose keys and values are in `pages`
    cached: int | None = None  # how many of these were found when it first ran
    proposals: list[int] = field(default_factory=list)  # guesses at what follows `ids`
    _keys: list[bytes] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        """Known tokens that have not been run."""
        return len(self.ids) - self.length

    def key(self, page: int, page_size: int) -> bytes:
        """The key of its page number `page`, all of whose tokens are known."""
        while len(self._keys) <= page:
            begin = len(self._keys) * page_size
            previous = self._keys[-1] if self._keys else self.origin
            self._keys.append(chain(previous, self.ids[begin : begin + page_size]))
        return self._keys[page]

    def rename(self, origin: bytes) -> None:
        """Weights or adapter are others from here on."""
        self.origin, self._keys = origin, []

    def rewrite(self, ids: list[int], page_size: int) -> None:
        """The tokens are these now; what was run of others is run anew."""
        pairs = enumerate(zip(self.ids, ids, strict=False))
        same = next((i for i, (old, new) in pairs if old != new), min(len(self.ids), len(ids)))
        self.ids = list(ids)
        self.length = min(self.length, same, len(ids) - 1)
        del self._keys[same // page_size :]

    def forked(self, number: int, ending: Many[int] = ()) -> Sequence:
        """Output `number` of the same request: the same prompt, and no pages yet.

        With an `ending` it is that, all of whose rows are wanted, and nothing follows.
        """
        ids = [*self.ids[: self.prompt_length], *ending]
        wanted = self.prompt_length if ending else None
        order = (self.order[0], number)
        return Sequence(order, ids, len(ids), self.origin, self.adapter, wanted)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one sequence in a step: its tokens from `begin` to `end`, proposals included.

    What follows the last `num_outputs` of them is wanted, the hidden states of `num_hidden`.
    """

    sequence: Sequence
    begin: int
    end: int
    num_outputs: int

    @property
    def num_hidden(self) -> int:
        return self.end - self.begin if self.sequence.wants_hidden else 0

    @property
    def tokens(self) -> Many[int]:
        sequence = self.sequence
        known = sequence.ids[self.begin : self.end]
        return known + sequence.proposals[: self.end - self.begin - len(known)]

    @property
    def draws(self) -> list[Draw | None]:
        """Of each output, how its token is drawn; None where its logits are wanted."""
        draw = self.sequence.draw
        if draw is None:
            return [None] * self.num_outputs
        first = self.end - self.num_outputs + 1 - self.sequence.prompt_length
        return [draw(first + i) for i in range(self.num_outputs)]
