"""Speculation: cheap guesses at the next tokens, which the model checks in one step.

A guess holds where it is what the model's own draw says, with the same random number as without
speculation (`sampling.uniform`). So the output is the same, token for token, whatever is guessed;
a guess that follows another distribution only holds less often.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from itertools import islice
from typing import Protocol

from puna.engine.batch import Runner
from puna.engine.draws import token_of
from puna.engine.pages import Pages
from puna.engine.params import SamplingParams
from puna.engine.scheduler import Scheduler
from puna.engine.sequence import Sequence

PROMPT_LOOKUP = "prompt-lookup"  # what users call the drafter that needs no model


class Asked(Protocol):
    """What a drafter may know of a request."""

    params: SamplingParams
    seed: int


class Drafter(Protocol):
    """Guesses how sequences go on."""

    def propose(self, sequences: Many[tuple[Sequence, Asked, int]]) -> None:
        """Sets `proposals` of each sequence, at most as many as its number says."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        ...

    def clear(self) -> None:
        """A step was broken off, perhaps while guessing: nothing that is held can be relied on."""
        ...


class PromptLookup:
    """Guesses that what followed these last tokens before follows them again.

    Costs nothing, and holds often where the output repeats the prompt: summaries, edits, code
    (https://github.com/apoorvumang/prompt-lookup-decoding).
    """

    def __init__(self, num_tokens: int = 8, *, longest: int = 3) -> None:
        self.num_tokens, self._longest = num_tokens, longest

    def propose(self, sequences: Many[tuple[Sequence, Asked, int]]) -> None:
        for sequence, _, room in sequences:
            sequence.proposals = self._following(sequence.ids, min(room, self.num_tokens))

    def forget(self, sequence: Sequence) -> None:
        """Nothing is held."""

    def clear(self) -> None:
        """Nothing is held."""

    def _following(self, ids: list[int], count: int) -> list[int]:
        """What came after the latest earlier place of the longest end of `ids` that has one."""
        for length in range(min(self._longest, len(ids) - 1), 0, -1):
            end = ids[-length:]
            for begin in range(len(ids) - length - 1, -1, -1):
                if ids[begin] == end[0] and ids[begin : begin + length] == end:
                    return ids[begin + length : begin + length + count]
        return []


class DraftModel:
    """Guesses with a smaller model of the same vocabulary, and with its own pages."""

    def __init__(
        self,
        runner: Runner,
        vocab_size: int,
        num_tokens: int = 4,
        *,
        max_rows: int,
        max_sequences: int,
    ) -> None:
        self.num_tokens = num_tokens
        self._runner, self._vocab_size = runner, vocab_size
        self._pages = Pages(runner.num_pages, runner.page_size)
        self._scheduler = Scheduler(self._pages, max_rows=max_rows, max_sequences=max_sequences)
        self._twins: dict[Sequence, Sequence] = {}

    def propose(self, sequences: Many[tuple[Sequence, Asked, int]]) -> None:
        context = self._runner.config.context_length
        going: dict[Sequence, tuple[Sequence, Asked, int]] = {}
        for sequence, asked, room in sequences:
            room = min(room, context - len(sequence.ids), self.num_tokens)
            # Ids of padding may be beyond the smaller model's.
            known = max(sequence.ids) < self._runner.config.vocab_size
            if room > 0 and known and self._scheduler.fits(len(sequence.ids) + room):
                going[self._twin(sequence)] = (sequence, asked, room)
            else:
                self.forget(sequence)
        for sequence in self._twins.keys() - {sequence for sequence, _, _ in sequences}:
            self.forget(sequence)  # it waits; its pages are better used
        for _ in range(self.num_tokens):
            plan = self._scheduler.plan()
            if plan is None:
                break
            output = self._runner.step(plan.batch)
            answers = iter(output.answers(plan.batch, self._vocab_size))
            for part in plan.parts:
                twin = part.sequence
                for answer in islice(answers, part.num_outputs):
                    sequence, asked, room = going[twin]
                    if len(sequence.proposals) < room:
                        token = token_of(
                            answer,
                            asked.params,
                            twin.ids[: twin.prompt_length],
                            twin.ids[twin.prompt_length :],
                            seed=asked.seed,
                            sample=twin.order[1],
                        )
                        twin.ids.append(token)
                        sequence.proposals.append(token)
                self._scheduler.advance(part)

    def forget(self, sequence: Sequence) -> None:
        twin = self._twins.pop(sequence, None)
        if twin is not None:
            self._scheduler.remove(twin)

    def clear(self) -> None:
        self._twins.clear()
        self._scheduler.restart([])

    def _twin(self, sequence: Sequence) -> Sequence:
        """The draft's own copy of a sequence, without guesses that did not hold."""
        sequence.proposals = []
        twin = self._twins.get(sequence)
        if twin is None:
            twin = Sequence(
                sequence.order, list(sequence.ids), sequence.prompt_length, draw=sequence.draw
            )
            self._twins[sequence] = twin
            self._scheduler.add(twin)
        else:
            twin.rewrite(sequence.ids, self._pages.page_size)
        return twin
