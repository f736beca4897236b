"""Dialogs as JSONL, one a line: `{"messages": [{"role": ..., "content": ...}, ...]}`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.chat import Message, check_dialog
from puna.data.text import records


@dataclass(frozen=True, slots=True)
class Prompt:
    """A dialog that waits for its answer.

    `is_safety`: it was written to provoke an unsafe one. `risk` is its category (`train.preprompts`
    knows which there are), "" where none is known.
    """

    messages: tuple[Message, ...]
    is_safety: bool = False
    risk: str = ""


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a `.jsonl` file (also `.zst`, `.gz`): dialogs that end with the user.

    Raises ValueError, with the file and the record, for a dialog that is none or ends otherwise,
    text that forges a tag, a value of another type, and a file without prompts.
    """
    found = []
    for number, record, messages in _dialogs(path):
        if messages[-1].role != "user":
            raise _error(path, number, f"it ends with the {messages[-1].role}, not with the user")
        is_safety, risk = record.get("is_safety", False), record.get("risk", "")
        if not isinstance(is_safety, bool):
            raise _error(path, number, f"is_safety is true or false, not {is_safety!r}")
        if not isinstance(risk, str):
            raise _error(path, number, f"risk is the name of a category, not {risk!r}")
        found.append(Prompt(messages, is_safety, risk))
    if not found:
        raise ValueError(f"{path} holds no prompts")
    return found


def read_user_turns(path: Path) -> list[tuple[str, ...]]:
    """What the user says in each dialog of a file, whoever has the last word in it.

    Raises ValueError as `read_prompts`.
    """
    found = [
        tuple(message.content for message in messages if message.role == "user")
        for _, _, messages in _dialogs(path)
    ]
    if not found:
        raise ValueError(f"{path} holds no dialogs")
    return found


def _dialogs(path: Path) -> Iterator[tuple[int, dict[str, Any], tuple[Message, ...]]]:
    for number, record in enumerate(records(path), start=1):
        values = record.get("messages") if isinstance(record, dict) else None
        if not isinstance(values, list) or not values:
            raise _error(path, number, "no field 'messages' with a list of messages")
        messages = tuple(_message(value, path, number) for value in values)
        try:
            check_dialog(messages)
        except ValueError as error:
            raise _error(path, number, str(error)) from None
        yield number, record, messages


def _message(value: Any, path: Path, number: int) -> Message:
    role, content = (
        (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)
    )
    if not isinstance(role, str) or not isinstance(content, str):
        raise _error(path, number, "a message needs a role and a content, both text")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise _error(path, number, "a message holds half a surrogate pair") from None
    return Message(role, content)


def _error(path: Path, number: int, problem: str) -> ValueError:
    return ValueError(f"{path}, record {number}: {problem}")
