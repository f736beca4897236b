"""The benchmarks by their names."""

from __future__ import annotations

from puna.evaluate.tasks.code import CODE
from puna.evaluate.tasks.commonsense import COMMONSENSE
from puna.evaluate.tasks.knowledge import KNOWLEDGE
from puna.evaluate.tasks.leaderboard import LEADERBOARD
from puna.evaluate.tasks.maths import MATHS
from puna.evaluate.tasks.reading import READING
from puna.evaluate.tasks.reasoning import REASONING
from puna.evaluate.tasks.task import Task

_FAMILIES = (LEADERBOARD, CODE, COMMONSENSE, KNOWLEDGE, READING, MATHS, REASONING)
TASKS: dict[str, Task] = {task.name: task for family in _FAMILIES for task in family}


def task_of(name: str) -> Task:
    """A benchmark. ValueError where there is none of this name."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are: {', '.join(TASKS)}")
    return TASKS[name]
