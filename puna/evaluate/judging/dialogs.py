"""What the user says in the dialogs of a chat evaluation, with answers where a file has some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.chat import Message, check_dialog
from puna.data.text import is_broken, numbered_records


@dataclass(frozen=True, slots=True)
class Script:
    """A dialog: what the user says in each of its `turns`, and `answers` to the first of these.

    `system` is its system prompt, "" for none; results are told by `category`.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    answers: tuple[str, ...] = ()
    system: str = ""

    def answered(self, answers: Sequence[str]) -> list[Message]:
        """The dialog as it went, up to the last of these answers."""
        messages = [Message("system", self.system)] if self.system else []
        for turn, text in zip(self.turns, answers, strict=False):
            messages += [Message("user", turn), Message("assistant", text)]
        return messages

    def waiting(self, answers: Sequence[str]) -> list[Message]:
        """The same, and what the user says next."""
        return [*self.answered(answers), Message("user", self.turns[len(answers)])]


def read_scripts(path: Path) -> list[Script]:
    """The dialogs of a `.jsonl` file (also `.zst`, `.gz`), one a line.

    `{"messages": [{"role", "content"}, ...]}`, with or without the assistant's; or MT-Bench's
    `{"turns": [...]}`. `id` (`question_id`) and `category` are optional. ValueError, with the line,
    for anything else, text that forges a tag of the chat format in what the user says, an id that
    is there twice, and a file without dialogs.
    """
    found: dict[str, Script] = {}
    for number, record in numbered_records(path):
        place = f"{path}, line {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{place}: not a JSON object")
        system, turns, answers = _said(record, place)
        name = str(record.get("id", record.get("question_id", number)))
        category = record.get("category", "all")
        if not isinstance(category, str):
            raise ValueError(f"{place}: a category is text, not {category!r}")
        if name in found:
            raise ValueError(f"{place}: there are two dialogs with the id {name}")
        found[name] = Script(name, category, tuple(turns), tuple(answers), system)
        _check(found[name], place)
    if not found:
        raise ValueError(f"{path} holds no dialogs")
    return list(found.values())


def stored_answers(path: Path, scripts: Sequence[Script]) -> list[tuple[str, ...]]:
    """The answers that a file of dialogs has to these scripts, in their order.

    ValueError where one of them is missing there or was asked other things, and where none has any.
    """
    stored = {script.id: script for script in read_scripts(path)}
    answers = []
    for script in scripts:
        there = stored.get(script.id)
        asked = script.turns if there is None else script.turns[: len(there.turns)]
        if there is None or (there.turns, there.system) != (asked, script.system):
            raise ValueError(f"{path} has no answers to dialog {script.id} as it is asked here")
        answers.append(there.answers)
    if not any(answers):
        raise ValueError(f"{path} holds dialogs, but no answers")
    return answers


def _said(record: dict[str, Any], place: str) -> tuple[str, list[str], list[str]]:
    """System prompt, what the user says, what the assistant answers."""
    turns = record.get("turns")
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        return "", turns, []
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{place}: no field 'messages' with a list of messages, and no 'turns'")
    said: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for position, message in enumerate(messages):
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, dict) else (0, 0)
        )
        if role not in said or not isinstance(content, str):
            raise ValueError(f"{place}: a message needs a role and a content, both text")
        if role == "system" and position:
            raise ValueError(f"{place}: a system message stands first, or nowhere")
        # The user may speak again with no answer between: the models give that.
        if role == "assistant" and len(said["assistant"]) + 1 != len(said["user"]):
            raise ValueError(f"{place}: an answer follows what the user says, and each before it")
        said[str(role)].append(content)
    if not said["user"]:
        raise ValueError(f"{place}: the user says nothing")
    return "".join(said["system"]), said["user"], said["assistant"]


def _check(script: Script, place: str) -> None:
    try:
        # Answers of others may say anything; they are made harmless where they are shown.
        check_dialog(script.answered(["" for _ in script.turns]))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if any(is_broken(text) for text in (script.system, *script.turns, *script.answers)):
        raise ValueError(f"{place}: a message holds half a surrogate pair")
