"""Which questions are learned, which are prompts for reinforcement, and which are held out.

A question's text is in one split alone, whatever kinds of tasks ask it; and of some subjects all
questions are held out, so that what was learned by heart can be told from what was not.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from puna.recipes.tasks.task import Task

NOVEL_SHARE = 0.1  # of the subjects: no question about them is learned
# Of a subject's other questions; what is left over is learned. Of six: 3 learned, 2 for
# reinforcement, 1 held out.
HELD_OUT_SHARE = 1 / 6
PROMPT_SHARE = 1 / 3


class Split(NamedTuple):
    """Tasks by their use; `held_out` has those on known subjects and novel ones."""

    sft: list[Task]
    prompts: list[Task]
    held_out: list[Task]


def split(tasks: Iterable[Task], seed: int) -> Split:
    """Deals out tasks by their questions, from a seed; each subject and group by itself."""
    tasks = list(tasks)
    generator = random.Random(f"split {seed}")
    subjects = sorted({task.subject for task in tasks})
    families: dict[str, list[str]] = {}
    for subject in subjects:
        families.setdefault(subject.partition("/")[0], []).append(subject)
    novel: set[str] = set()
    for family in families.values():
        novel.update(generator.sample(family, round(len(family) * NOVEL_SHARE)))

    questions: dict[tuple[str, str], set[str]] = {}
    for task in tasks:
        questions.setdefault((task.subject, task.asks), set()).add(task.question)
    place: dict[str, str] = {}
    for key in sorted(questions):
        # A seed for each: no subject's questions move where another has more or fewer.
        texts = sorted(questions[key] - place.keys())
        random.Random(f"split {seed} {key}").shuffle(texts)
        held_out = max(1, round(len(texts) * HELD_OUT_SHARE)) if len(texts) > 1 else 0
        prompts = round(len(texts) * PROMPT_SHARE)
        for number, text in enumerate(texts):
            ranked = ("held_out", number < held_out), ("prompts", number < held_out + prompts)
            place[text] = next((name for name, is_it in ranked if is_it), "sft")
    dealt = Split([], [], [])
    for task in tasks:
        if task.subject in novel:
            dealt.held_out.append(replace(task, novel=True))
        else:
            getattr(dealt, place[task.question]).append(task)
    return dealt
