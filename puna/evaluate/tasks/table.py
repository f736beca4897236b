"""The benchmarks by their names."""

from __future__ import annotations

from puna.evaluate.tasks.leaderboard import LEADERBOARD
from puna.evaluate.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (*LEADERBOARD,)}


def task_of(name: str) -> Task:
    """A benchmark. ValueError where there is none of this name."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are: {', '.join(TASKS)}")
    return TASKS[name]
