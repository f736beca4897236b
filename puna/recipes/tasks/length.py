"""Stories of so many sentences, about something that is asked for."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puna.chat import Message
from puna.recipes.tasks.requirements import sentences, tells, words
from puna.recipes.tasks.task import Requirement, Task


@dataclass(frozen=True, slots=True)
class Limit:
    """How many sentences, and how that is asked for: {a} is the subject with its article."""

    least: int
    most: int
    demands: tuple[str, ...]


LIMITS: dict[str, Limit] = {
    "one": Limit(1, 1, (
        "Tell me a story about {a} in one sentence.", "Write one sentence about {a}.",
        "Tell me about {a} in exactly one sentence.",
    )),
    "two": Limit(2, 2, (
        "Tell me a story about {a} in two sentences.", "Write two sentences about {a}.",
        "Tell me about {a} in exactly two sentences.",
    )),
    "three": Limit(3, 3, (
        "Tell me a story about {a} in three sentences.", "Write three sentences about {a}.",
        "Tell me about {a} in exactly three sentences.",
    )),
    "at-most-four": Limit(1, 4, (
        "Tell me a story about {a} in at most four sentences.",
        "Write no more than four sentences about {a}.",
        "Tell me a short story about {a}, four sentences at most.",
    )),
}  # fmt: skip


def tasks(
    stories: Sequence[str], subjects: Sequence[str], generator: random.Random
) -> Iterator[Task]:
    """Openings of stories that name a subject: one a subject, limit, wording and opening.

    Stories with speech in their opening are left out: where its sentences end is a matter of taste.
    """
    for number, story in enumerate(stories):
        opening = " ".join(story.split())[:600]
        parts = _sentences(opening)[:4]
        if len(parts) < 4 or '"' in " ".join(parts):
            continue
        for key, limit in LIMITS.items():
            count = limit.most if limit.least == limit.most else generator.randint(2, limit.most)
            text = " ".join(parts[:count])
            found = set(words(text))
            named = [s for s in subjects if s in found]
            subject = next((s for s in named if tells(text, about=s)), None)
            if subject is None or len(sentences(text)) != count:
                continue
            demand = generator.choice(limit.demands).format(a=_article(subject))
            others = [s for s in subjects if s not in found]
            yield Task(
                id=f"length/{key}/{subject}/{number}",
                kind="length",
                group=key,
                subject=f"story/{subject}",
                question=demand,
                messages=(Message("user", demand),),
                answer=text,
                requirements=(
                    Requirement("tells", {"about": subject}),
                    Requirement("sentences", {"least": limit.least, "most": limit.most}),
                ),
                asks="story",
                flawed=(
                    " ".join((*parts, *parts[:1])) if limit.most > 3 else " ".join(parts),
                    text.replace(subject, generator.choice(others)),
                    parts[-1].split(" ", 1)[-1].rstrip(".!?"),
                ),
            )


def _sentences(text: str) -> list[str]:
    """The whole sentences of a text, with their ends."""
    found = re.findall(r"[A-Z][^.!?]*[.!?]+[\"'”’]*(?=\s|$)", text)
    return found if text.startswith(found[0] if found else "\0") else []


def _article(subject: str) -> str:
    return f"{'an' if subject[0] in 'aeiou' else 'a'} {subject}"
