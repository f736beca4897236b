"""Which benchmarks are run together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from puna.evaluate.reference import BENCHMARKS, PAPER
from puna.evaluate.tasks.table import TASKS, task_of


@dataclass(frozen=True, slots=True)
class Suite:
    """Benchmarks by name; of each, `questions` (None: all), spread evenly over its groups.

    `table` is the source in `puna.evaluate.reference` whose rows, means over several benchmarks,
    are shown too.
    """

    title: str
    tasks: tuple[str, ...]
    questions: int | None = None
    table: str | None = None


_LEADERBOARD = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2")

# TruthfulQA and ToxiGen, which the paper has too, are asked by `puna eval safety`.
_PAPER = tuple(
    part.task
    for benchmark in BENCHMARKS
    if benchmark.source == PAPER
    for part in benchmark.parts
    if part.task in TASKS
)

SUITES: dict[str, Suite] = {
    "leaderboard": Suite("Open LLM Leaderboard", _LEADERBOARD),
    "paper": Suite("The paper's table", _PAPER, table=PAPER),
    "quick": Suite("A sample of the leaderboard", _LEADERBOARD, questions=228),
}


def present(suite: Suite, data: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tasks of a suite whose rows a folder has, or the hub (None), and those that are left out.

    ValueError where none is there.
    """
    there = tuple(
        name
        for name in suite.tasks
        if (task_of(name).on_hub if data is None else (data / task_of(name).folder).is_dir())
    )
    if not there:
        raise ValueError(f"{data} has no folder of any benchmark of the suite, such as mmlu")
    return there, tuple(name for name in suite.tasks if name not in there)
