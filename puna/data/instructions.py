"""Dialogs out of instruction files: `.jsonl` and `.json`, either also as `.zst` or `.gz`.

A file is of one form, which its first record tells. What is not of that form is an error that names
file and place; what is, and cannot be learned from, is for `data.dialogs` to count and leave out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.chat import Message
from puna.data.text import numbered_records, text_documents

END_OF_TEXT = "<|endoftext|>"  # what ends P3's completions
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}
_ROLES = ("system", "user", "assistant")
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dialog:
    """A dialog to learn from: of each message whether it is learned, which only answers can be.

    `place` says where it was read, for people.
    """

    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    place: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """How a file says dialogs. `read` gives (role, text, whether it is learned if an answer) of
    each message; ValueError says what is wrong with a record."""

    name: str
    looks_like: str
    detect: Callable[[Record], bool]
    read: Callable[[Record], list[tuple[str, str, bool]]]


def dialogs(path: Path) -> Iterator[Dialog]:
    """The dialogs of one file, in order.

    Raises ValueError, with the line (of `.json`: the record), for what is not JSON, is of no known
    form, or of another than the file's first record.
    """
    form: Form | None = None
    for place, record in _records(path):
        if not isinstance(record, dict):
            raise ValueError(f"{place}: not a JSON object")
        form = form or _form_of(record, place)
        try:
            messages = form.read(record)
        except ValueError as error:
            raise ValueError(f"{place}, form {form.name}: {error}") from None
        yield Dialog(
            tuple(Message(role, text) for role, text, _ in messages),
            tuple(role == "assistant" and learned for role, _, learned in messages),
            place,
        )


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each record with its place."""
    kind = path.name.removesuffix(".zst").removesuffix(".gz").rpartition(".")[2]
    if kind == "jsonl":
        for number, record in numbered_records(path):
            yield f"{path}, line {number}", record
        return
    if kind != "json":
        raise ValueError(
            f"{path}: unknown kind of instruction file; known are .jsonl and .json (and .zst, .gz)"
        )
    try:
        values = json.loads("".join(text_documents(path, None)))
    except RecursionError:
        raise ValueError(f"{path}: nested too deep to be instructions") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: not valid JSON; with a record a line, call it .jsonl"
        ) from None
    if not isinstance(values, list):
        raise ValueError(f"{path}: a .json file of instructions is a list of records")
    for number, record in enumerate(values, start=1):
        yield f"{path}, record {number}", record


def _form_of(record: Record, place: str) -> Form:
    found = next((form for form in FORMS if form.detect(record)), None)
    if found is None:
        known = "; ".join(f"{form.name} ({form.looks_like})" for form in FORMS)
        raise ValueError(f"{place}: a record of no known form; known are {known}")
    return found


def _text(record: Record, key: str, what: str = "") -> str:
    """A string of a record; `what` says whose field it is."""
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{what}the field '{key}' is no string")
    return value


def _optional(record: Record, key: str) -> str:
    return "" if record.get(key) is None else _text(record, key)


def _parts(record: Record, key: str) -> Iterator[tuple[str, Record]]:
    """The messages of a record, each with what to call it."""
    parts = record.get(key)
    if not isinstance(parts, list):
        raise ValueError(f"the field '{key}' is no list")
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, dict):
            raise ValueError(f"message {number} is no object")
        yield f"message {number}: ", part


def _messages(record: Record) -> list[tuple[str, str, bool]]:
    found = []
    for what, part in _parts(record, "messages"):
        role, weight = _text(part, "role", what), part.get("weight", 1)
        if role not in _ROLES:
            raise ValueError(f"{what}role {role!r} is none of {', '.join(_ROLES)}")
        if weight not in (0, 1) or ("weight" in part and role != "assistant"):
            raise ValueError(f"{what}a weight is 0 or 1, and an assistant's; this is {weight!r}")
        found.append((role, _text(part, "content", what), bool(weight)))
    return found


def _sharegpt(record: Record) -> list[tuple[str, str, bool]]:
    system = _optional(record, "system")
    found = [("system", system, True)] if system else []
    for what, part in _parts(record, "conversations"):
        role = _SHAREGPT_ROLES.get(_text(part, "from", what))
        if role is None:
            known = ", ".join(_SHAREGPT_ROLES)
            raise ValueError(f"{what}from {part['from']!r} is none of {known}")
        found.append((role, _text(part, "value", what), True))
    return found


def _alpaca(record: Record) -> list[tuple[str, str, bool]]:
    # The template of Alpaca's own was for models without a chat format.
    question = _text(record, "instruction")
    if given := _optional(record, "input"):
        question += f"\n\n{given}"
    return [("user", question, True), ("assistant", _text(record, "output"), True)]


def _answered(answer: str) -> Callable[[Record], list[tuple[str, str, bool]]]:
    """A prompt and its answer, in the field `answer`."""

    def read(record: Record) -> list[tuple[str, str, bool]]:
        text = _text(record, answer).removesuffix(END_OF_TEXT)
        return [("user", _text(record, "prompt"), True), ("assistant", text, True)]

    return read


def _has(*keys: str) -> Callable[[Record], bool]:
    return lambda record: all(key in record for key in keys)


FORMS = (
    Form("messages", "messages: [{role, content, weight}]", _has("messages"), _messages),
    Form("ShareGPT", "conversations: [{from, value}]", _has("conversations"), _sharegpt),
    Form("Alpaca", "instruction, input, output", _has("instruction", "output"), _alpaca),
    Form("P3", "prompt, completion", _has("prompt", "completion"), _answered("completion")),
    Form("Dolly", "prompt, response", _has("prompt", "response"), _answered("response")),
)
