"""A task: a dialog that waits for its answer, and what a right answer is; as JSON lines too."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.chat import Message, check_dialog
from puna.data.text import records
from puna.recipes.tasks.requirements import REQUIREMENTS


@dataclass(frozen=True, slots=True)
class Requirement:
    """A row of `REQUIREMENTS` and its arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def met(self, text: str) -> bool:
        """Whether the text is so."""
        return REQUIREMENTS[self.name](text, **self.arguments)


# Kinds that a Safety reward model judges: what must be declined, and what only looks like it.
RISKY = ("refusal", "benign")


@dataclass(frozen=True, slots=True)
class Task:
    """One instruction and a right answer to it.

    `subject` is what it asks about, `question` what must not be in two splits; `is_safety` says
    that the right answer declines; `novel`, of held-out ones, that no task on the subject is
    trained on. Known where a task is made, not in files: what it `asks` of its subject, and
    `flawed` answers.
    """

    id: str
    kind: str
    group: str
    subject: str
    question: str
    messages: tuple[Message, ...]
    answer: str
    requirements: tuple[Requirement, ...]
    is_safety: bool = False
    novel: bool = False
    asks: str = ""
    flawed: tuple[str, ...] = ()

    def check(self, answer: str) -> float:
        """The gold score of an answer: the part of the requirements that it meets, from 0 to 1."""
        return sum(each.met(answer) for each in self.requirements) / len(self.requirements)

    def row(self) -> dict[str, Any]:
        """The task as a line of `prompts.jsonl` or `held_out.jsonl`; `risk` is its category."""
        return {
            "id": self.id,
            "kind": self.kind,
            "group": self.group,
            "subject": self.subject,
            "question": self.question,
            "messages": messages_row(self.messages),
            "answer": self.answer,
            "requirements": [[each.name, dict(each.arguments)] for each in self.requirements],
            "is_safety": self.is_safety,
            "risk": self.group if self.kind in RISKY else "",
            "novel": self.novel,
        }


def gold(tasks: Sequence[Task], answers: Sequence[str]) -> list[float]:
    """The gold score of each task's answer. ValueError where their numbers differ."""
    if len(tasks) != len(answers):
        raise ValueError(f"there are {len(tasks)} tasks and {len(answers)} answers")
    return [task.check(answer) for task, answer in zip(tasks, answers, strict=True)]


def messages_row(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as they stand in JSON lines."""
    return [{"role": each.role, "content": each.content} for each in messages]


def read_tasks(path: Path) -> list[Task]:
    """The tasks of a file of `puna tasks build`; ValueError names the line that is none."""
    tasks = [_task(row, f"{path}, line {n}") for n, row in enumerate(records(path), start=1)]
    if not tasks:
        raise ValueError(f"{path} holds no tasks")
    return tasks


def _task(row: Any, where: str) -> Task:
    strings = ("id", "kind", "group", "subject", "question", "answer")
    try:
        messages = tuple(Message(each["role"], each["content"]) for each in row["messages"])
        requirements = tuple(Requirement(name, given) for name, given in row["requirements"])
        texts = {name: row[name] for name in strings}
        flags = {name: row[name] for name in ("is_safety", "novel")}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where}: not a task as puna tasks build writes it") from None
    contents = [each.content for each in messages]
    if not all(isinstance(text, str) for text in (*texts.values(), *contents)) or not messages:
        raise ValueError(f"{where}: a task's texts must be strings")
    try:
        check_dialog(messages)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not all(isinstance(flag, bool) for flag in flags.values()) or not requirements:
        raise ValueError(f"{where}: a task needs requirements, and true or false for its flags")
    for each in requirements:
        if each.name not in REQUIREMENTS:
            known = ", ".join(REQUIREMENTS)
            raise ValueError(f"{where}: no requirement {each.name!r}; known are {known}")
        try:
            inspect.signature(REQUIREMENTS[each.name]).bind("", **each.arguments)
            each.met("A word.")
        except (TypeError, AttributeError, ValueError):
            raise ValueError(f"{where}: wrong arguments for {each.name!r}") from None
    return Task(messages=messages, requirements=requirements, **texts, **flags)


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
