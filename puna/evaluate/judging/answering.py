"""A model answers every turn of the dialogs, each after its own answers to those before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from puna.chat import Message
from puna.evaluate.judging.dialogs import Script, read_scripts
from puna.formats.resumable import Record, resumable

_CHUNK = 32  # dialogs that grow together, and are kept together (ours)
Replies = Callable[[Sequence[Sequence[Message]]], list[str]]


def answer(
    path: Path,
    scripts: Sequence[Script],
    replies: Replies,
    settings: Record,
    *,
    fits: Callable[[Sequence[Message]], bool],
    advance: Callable[[], None] = lambda: None,
) -> list[tuple[str, ...]]:
    """Writes `path`, dialogs with their answers (`read_scripts`), resumable; gives the answers.

    `replies` gives the answer to each of several dialogs that end with the user. A dialog ends
    early where its next turn does not fit (`fits`), so it may have fewer answers than turns.
    """

    def work(part: Sequence[Script]) -> list[Record]:
        given: list[list[str]] = [[] for _ in part]
        for turn in range(max(len(script.turns) for script in part)):
            waiting = [
                (answers, dialog)
                for script, answers in zip(part, given, strict=True)
                if len(answers) == turn < len(script.turns)
                and fits(dialog := script.waiting(answers))
            ]
            if not waiting:
                break
            texts = replies([dialog for _, dialog in waiting])
            for (answers, _), text in zip(waiting, texts, strict=True):
                answers.append(text)
        return [_record(*pair) for pair in zip(part, given, strict=True)]

    resumable(path, settings, scripts, work, chunk=_CHUNK, advance=advance)
    return [script.answers for script in read_scripts(path)]


def _record(script: Script, answers: Sequence[str]) -> Record:
    messages = script.answered(answers) if answers else script.waiting(answers)
    return {
        "id": script.id,
        "category": script.category,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
    }
