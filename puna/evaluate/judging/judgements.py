"""Judgements of answers, one after another in a file, by a model that reads or one that scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from puna.chat import TAGS, Message
from puna.data.text import records
from puna.evaluate.judging.dialogs import Script
from puna.evaluate.judging.endpoint import RefusedRequestError
from puna.evaluate.judging.prompts import (
    defused,
    pair_messages,
    rating_messages,
    read_rating,
    read_verdict,
)
from puna.formats.resumable import Record, resumable, streamed

Ask = Callable[[Sequence[Message]], str]
# Whole dialogs, each ending with an answer -> how good it is, on any one scale.
Scores = Callable[[Sequence[Sequence[Message]]], list[float]]
_SCORED_TOGETHER = 16  # turns that a scorer gets, and whose judgements are kept, at once (ours)
_TOO_LONG: Record = {"winner": None, "text": "(does not fit the context of the judge)"}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Turn:
    """The answers to one turn of a script, after those to the turns before: of the model that is
    judged, and of its opponent (none where it is judged alone)."""

    script: Script
    model: tuple[str, ...]
    opponent: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.script.id}/{len(self.model)}"

    @property
    def question(self) -> str:
        return self.script.turns[len(self.model) - 1]


class _Order(NamedTuple):
    """A turn, and whether the opponent stands first."""

    turn: Turn
    is_swapped: bool


def turns(
    scripts: Sequence[Script],
    model: Sequence[tuple[str, ...]],
    opponent: Sequence[tuple[str, ...]] | None = None,
) -> list[Turn]:
    """Every turn of the scripts that all have answered. ValueError where there is none."""
    found = []
    for number, script in enumerate(scripts):
        ours = model[number]
        theirs = ours if opponent is None else opponent[number]
        for end in range(1, min(len(ours), len(theirs)) + 1):
            found.append(Turn(script, ours[:end], () if opponent is None else theirs[:end]))
    if not found:
        raise ValueError("there is nothing to judge: no turn of the dialogs was answered")
    return found


def judge_pairs(
    path: Path,
    turns: Sequence[Turn],
    ask: Ask,
    settings: Record,
    *,
    concurrency: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Writes `path`: two judgements of each turn, the second with the opponent's answer first.

    `winner` is "model", "opponent" or "tie", and None where the verdict cannot be read; `text` is
    what the judge said. Resumes judgement by judgement; gives all of them.
    """

    def judged(order: _Order) -> Record:
        turn, swapped = order
        both = (turn.opponent, turn.model) if swapped else (turn.model, turn.opponent)
        text, verdict = _asked(ask, pair_messages(turn.script, *both), read_verdict)
        names = {"A": "model", "B": "opponent", "C": "tie"}
        if swapped:
            names |= {"A": "opponent", "B": "model"}
        return _record(turn) | {
            "first": "opponent" if swapped else "model",
            "winner": None if verdict is None else names[verdict],
            "text": text,
        }

    orders = [_Order(turn, swapped) for turn in turns for swapped in (False, True)]
    streamed(path, settings, orders, _in_threads(judged, concurrency), advance=advance)
    return list(records(path))


def rate(
    path: Path,
    turns: Sequence[Turn],
    ask: Ask,
    settings: Record,
    *,
    concurrency: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Writes `path`: a `rating` from 1 to 10 of each turn's answer alone, None where there is none
    to be read. Resumes judgement by judgement; gives all of them."""

    def judged(turn: Turn) -> Record:
        text, rating = _asked(ask, rating_messages(turn.script, turn.model), read_rating)
        return _record(turn) | {"rating": rating, "text": text}

    streamed(path, settings, turns, _in_threads(judged, concurrency), advance=advance)
    return list(records(path))


def score_pairs(
    path: Path,
    turns: Sequence[Turn],
    scores: Scores,
    fits: Callable[[Sequence[Message]], bool],
    settings: Record,
    *,
    advance: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Writes `path`: one judgement of each turn by a reward model, which sees each answer alone, so
    that there is no order to be swapped: the higher score wins. `winner` is None where a dialog
    does not fit the model (`fits`). Resumable; gives all of them."""

    def work(part: Sequence[Turn]) -> list[Record]:
        pairs = [
            [
                [_without_tags(message) for message in turn.script.answered(answers)]
                for answers in (turn.model, turn.opponent)
            ]
            for turn in part
        ]
        fitting = [all(map(fits, pair)) for pair in pairs]
        found = iter(
            scores([d for pair, fit in zip(pairs, fitting, strict=True) if fit for d in pair])
        )
        return [
            _record(turn) | (_scored(next(found), next(found)) if fit else _TOO_LONG)
            for turn, fit in zip(part, fitting, strict=True)
        ]

    resumable(path, settings, turns, work, chunk=_SCORED_TOGETHER, advance=advance)
    return list(records(path))


def _scored(ours: float, theirs: float) -> Record:
    winner = "tie" if ours == theirs else "model" if ours > theirs else "opponent"
    return {"winner": winner, "scores": {"model": ours, "opponent": theirs}}


def _asked(
    ask: Ask, messages: Sequence[Message], read: Callable[[str], _T | None]
) -> tuple[str, _T | None]:
    try:
        text = ask(messages)
    except RefusedRequestError as error:
        return f"({error})", None
    return text, read(text)


def _in_threads(
    judged: Callable[[_T], Record], concurrency: int
) -> Callable[[Sequence[_T]], Iterator[Record]]:
    """`judged` of each item, several at a time, in their order."""

    def work(items: Sequence[_T]) -> Iterator[Record]:
        pool = ThreadPoolExecutor(concurrency, "judge")
        try:
            waiting: deque[Future[Record]] = deque()
            for item in items:
                waiting.append(pool.submit(judged, item))
                if len(waiting) == concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return work


def _record(turn: Turn) -> Record:
    return {"id": turn.id, "category": turn.script.category}


def _without_tags(message: Message) -> Message:
    """What the chat format can say: an answer of somebody else's model may hold its tags."""
    if not any(tag in message.content for tag in TAGS):
        return message
    return Message(message.role, defused(message.content))
