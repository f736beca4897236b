"""Prompts as JSONL, a dialog a line: `{"messages": [{"role": ..., "content": ...}, ...]}`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.chat import Message, check_dialog
from puna.data.instructions import dialogs
from puna.data.text import numbered_records


@dataclass(frozen=True, slots=True)
class Prompt:
    """A dialog that waits for its answer.

    `is_safety`: it was written to provoke an unsafe one. `risk` is its category (of
    `train.producers.preprompts`), or that of what it only looks like; "" where none is known.
    """

    messages: tuple[Message, ...]
    is_safety: bool = False
    risk: str = ""

    @property
    def is_risky(self) -> bool:
        """Whether a Safety reward model judges its answers: it provokes, or looks like it. *Ours*:
        what only looks like it too, since the other model has seen no such prompt."""
        return self.is_safety or bool(self.risk)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a `.jsonl` file (also `.zst`, `.gz`): dialogs that end with the user.

    Raises ValueError, with the file and the line, for a dialog that is none or ends otherwise,
    text that forges a tag, a value of another type, and a file without prompts.
    """
    found = []
    for place, record, messages in _prompts(path):
        if messages[-1].role != "user":
            raise ValueError(f"{place}: it ends with the {messages[-1].role}, not with the user")
        is_safety, risk = record.get("is_safety", False), record.get("risk", "")
        if not isinstance(is_safety, bool):
            raise ValueError(f"{place}: is_safety is true or false, not {is_safety!r}")
        if not isinstance(risk, str):
            raise ValueError(f"{place}: risk is the name of a category, not {risk!r}")
        found.append(Prompt(messages, is_safety, risk))
    if not found:
        raise ValueError(f"{path} holds no prompts")
    return found


def read_user_turns(path: Path) -> list[tuple[str, ...]]:
    """What the user says in each dialog of a file, of any form that `data.instructions` reads,
    whoever has the last word in it. ValueError as of these, and as of `read_prompts`."""
    found = []
    for dialog in dialogs(path):
        turns = tuple(message for message in dialog.messages if message.role == "user")
        for turn in turns:
            _check([turn], dialog.place)
        if turns:
            found.append(tuple(turn.content for turn in turns))
    if not found:
        raise ValueError(f"{path} holds no dialogs")
    return found


def _prompts(path: Path) -> Iterator[tuple[str, dict[str, Any], tuple[Message, ...]]]:
    for number, record in numbered_records(path):
        place = f"{path}, line {number}"
        values = record.get("messages") if isinstance(record, dict) else None
        if not isinstance(values, list) or not values:
            raise ValueError(f"{place}: no field 'messages' with a list of messages")
        messages = tuple(_message(value, place) for value in values)
        _check(messages, place)
        yield place, record, messages


def _message(value: Any, place: str) -> Message:
    role, content = (
        (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)
    )
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"{place}: a message needs a role and a content, both text")
    return Message(role, content)


def _check(messages: Sequence[Message], place: str) -> None:
    try:
        check_dialog(messages)
        for message in messages:
            message.content.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: a message holds half a surrogate pair") from None
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
