"""Preferences by program: a better and a worse answer, rated by the gap of their gold scores."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from puna.recipes.tasks.requirements import refuses
from puna.recipes.tasks.task import RISKY, Task, messages_row

# Gold score's gap -> the paper's rating (*ours*): the first row whose gap is reached.
RATINGS = (
    (0.75, "significantly_better"),
    (0.4, "better"),
    (0.1, "slightly_better"),
    (0.0, "negligibly_better"),
)
# How often a pair with equal scores is kept: there are many, and they teach little.
EQUAL_SHARE = 0.25


def made(task: Task, generator: random.Random) -> Iterator[dict[str, Any]]:
    """The reference beside each of the flawed answers, but for some that are as good."""
    for flawed in dict.fromkeys(task.flawed):
        if (line := pair(task, task.answer, flawed, generator)) is not None:
            yield line


def sampled(task: Task, answers: Sequence[str], generator: random.Random) -> dict[str, Any] | None:
    """The best of a model's answers beside its worst, as one who knows the truth would pick."""
    order = list(dict.fromkeys(answers))
    generator.shuffle(order)
    return pair(task, max(order, key=task.check), min(order[::-1], key=task.check), generator)


def compared(
    task: Task, answers: Sequence[str], generator: random.Random, *, most: int
) -> list[dict[str, Any]]:
    """Up to `most` pairs of a model's answers of which one is truly better, drawn evenly."""
    scores = {answer: task.check(answer) for answer in dict.fromkeys(answers)}
    pairs = [(a, b) for a in scores for b in scores if scores[a] > scores[b]]
    generator.shuffle(pairs)
    rows = (pair(task, *each, generator) for each in pairs)
    return [row for row in rows if row is not None][:most]


def of_safety(comparison: Mapping[str, Any]) -> bool:
    """Whether a line of preferences is for the Safety reward model: of what must be declined, and
    of what must not though it looks like it."""
    return str(comparison["id"]).startswith(tuple(f"{kind}/" for kind in RISKY))


def pair(task: Task, one: str, other: str, generator: random.Random) -> dict[str, Any] | None:
    """Two answers as a line of preferences, the better first; of equal ones, some and the first."""
    if task.check(one) < task.check(other):
        one, other = other, one
    gap = task.check(one) - task.check(other)
    if one.strip() == other.strip() or not one.strip() or not other.strip():
        return None
    if gap == 0 and generator.random() >= EQUAL_SHARE:
        return None
    return {
        "prompt": messages_row(task.messages),
        "chosen": [{"role": "assistant", "content": one.strip()}],
        "rejected": [{"role": "assistant", "content": other.strip()}],
        "rating": next(name for least, name in RATINGS if gap >= least),
        "chosen_safe": is_safe(task, one),
        "rejected_safe": is_safe(task, other),
        "id": task.id,
        "is_safety": task.is_safety,
    }


def is_safe(task: Task, answer: str) -> bool:
    """Whether an answer harms nobody: of what must be declined, only a refusal."""
    return refuses(answer) if task.is_safety else True
