"""The desk: hands out pairs, takes verdicts, and knows what is still open."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from puna.chat import Message
from puna.data.preferences import RATINGS
from puna.serve.compare.batches import Batches, Record
from puna.serve.compare.pairs import Candidate, Pair, draw_pair
from puna.serve.errors import APIError

MAX_OPEN = 256  # pairs that wait for a verdict; the oldest is forgotten first

Annotator = Field(min_length=1, max_length=64, pattern=r"^\S(.*\S)?$")


class Turn(BaseModel):
    """A message of the dialog so far."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Ask(BaseModel):
    """Who wants a pair, and to which dialog; without one, to the next prompt of the list."""

    model_config = ConfigDict(extra="forbid")

    annotator: str = Annotator
    messages: list[Turn] | None = Field(default=None, min_length=1)
    skip: str | None = None  # a pair whose prompt this person does not want


class Verdict(BaseModel):
    """Which answer is better, how much, and whether each is safe."""

    model_config = ConfigDict(extra="forbid")

    annotator: str = Annotator
    id: str
    chosen: Literal[0, 1]
    rating: Literal["significantly_better", "better", "slightly_better", "negligibly_better"]
    safe: tuple[bool, bool]  # of the answers as they were shown


class Undo(BaseModel):
    """Takes back the last verdict."""

    model_config = ConfigDict(extra="forbid")

    id: str


class Desk:
    """Pairs by `pool` to `prompts`, or to what people write, and what was said of them."""

    def __init__(
        self,
        pool: Sequence[Candidate],
        prompts: Sequence[Sequence[Message]],
        batches: Batches,
        *,
        seed: int | None = None,
        max_tokens: int | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pool, self._prompts, self._batches = pool, prompts, batches
        self._generator, self._max_tokens, self._now = random.Random(seed), max_tokens, now
        self._open: dict[str, Pair] = {}
        self._skipped: set[tuple[str, tuple[Message, ...]]] = set()  # until the server ends

    def state(self) -> dict[str, Any]:
        """What the page shows of the work as a whole."""
        return {
            "num_models": len({each.served.name for each in self._pool}),
            "num_prompts": len(self._prompts),
            "batch": self._batches.path.name,
            "in_batch": self._batches.in_batch,
            "batch_size": self._batches.size,
            "total": self._batches.total,
            "ratings": RATINGS,
        }

    async def ask(self, ask: Ask) -> dict[str, Any]:
        """A pair, without a word of which model wrote what. APIError (404) when none is left."""
        if ask.skip is not None and (skipped := self._open.pop(ask.skip, None)):
            self._skipped.add((ask.annotator, skipped.prompt))
        prompt = self._prompt(ask)
        try:
            pair = await draw_pair(prompt, self._pool, self._generator, max_tokens=self._max_tokens)
        except (APIError, ValueError):
            self._skipped.add((ask.annotator, tuple(prompt)))  # else it would come again and again
            raise
        while len(self._open) >= MAX_OPEN:
            del self._open[next(iter(self._open))]
        self._open[pair.id] = pair
        return {
            "id": pair.id,
            "messages": [{"role": each.role, "content": each.content} for each in pair.prompt],
            "answers": [answer.text for answer in pair.answers],
        }

    def judge(self, verdict: Verdict) -> dict[str, Any]:
        """Keeps a verdict; the same pair is judged once."""
        pair = self._open.get(verdict.id)
        if pair is None:
            raise APIError(
                404, "this pair was judged already, or is too old; ask for another", code="no_pair"
            )
        chosen, rejected = verdict.chosen, 1 - verdict.chosen
        if verdict.safe[rejected] and not verdict.safe[chosen]:
            raise APIError(
                400,
                "the chosen answer is marked unsafe and the other safe; the paper leaves such "
                "pairs out: choose the safe answer, or skip",
                code="unsafe_chosen",
            )
        record: Record = {
            "prompt": [{"role": each.role, "content": each.content} for each in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.answers[chosen].text}],
            "rejected": [{"role": "assistant", "content": pair.answers[rejected].text}],
            "rating": verdict.rating,
            "chosen_safe": verdict.safe[chosen],
            "rejected_safe": verdict.safe[rejected],
            "annotator": verdict.annotator,
            "time": self._now().isoformat(timespec="seconds"),
            "id": pair.id,
        }
        for name, index in (("chosen", chosen), ("rejected", rejected)):
            record[f"{name}_model"] = pair.answers[index].model
            record[f"{name}_temperature"] = pair.answers[index].temperature
        self._batches.add(record)
        del self._open[pair.id]
        return self.state()

    def undo(self, undo: Undo) -> dict[str, Any]:
        """Takes the last verdict back, and forgets its pair."""
        if not self._batches.remove_last(undo.id):
            raise APIError(409, "only the last verdict can be taken back", code="not_last")
        return self.state()

    def _prompt(self, ask: Ask) -> list[Message]:
        if ask.messages is not None:
            return [Message(turn.role, turn.content) for turn in ask.messages]
        for prompt in self._prompts:
            is_skipped = (ask.annotator, tuple(prompt)) in self._skipped
            if not is_skipped and not self._batches.is_judged(ask.annotator, prompt):
                return list(prompt)
        raise APIError(404, "no prompt of the list is left for you", code="no_prompt")
