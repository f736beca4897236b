"""What a report says: one or several runs, beside the values that others have."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.evaluate.contamination.check import Contamination, read_contamination
from puna.evaluate.means import interval, mean_of_groups, mean_of_questions
from puna.evaluate.reference import BENCHMARKS, MODELS, SOURCES, Benchmark, Model, Part
from puna.evaluate.results import Results, Sample, Score, TaskResult, read_results, read_samples

_CHOSEN = ("acc", "acc_norm")  # metrics of an ending that is chosen, which chance gets right too


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is shown: `name` is its model's, with its folder's where two have the same.

    `chance` is what choosing endings blindly would score, by task, where that has a meaning.
    """

    name: str
    results: Results
    samples: dict[str, list[Sample]]
    chance: dict[str, float]
    contamination: Contamination | None

    def task(self, name: str) -> TaskResult | None:
        """Its result of a task, None where it has none."""
        return _task(self.results, name)


@dataclass(frozen=True, slots=True)
class Cell:
    """A run's score of a benchmark, and the tasks of the benchmark that it did not run.

    `metric` is the task's where the score is that of one task, "" of a mean.
    """

    score: Score
    missing: tuple[str, ...] = ()
    metric: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A benchmark: of each run what it has."""

    benchmark: Benchmark
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Runs, and the benchmarks that any of them has."""

    runs: tuple[Run, ...]
    rows: tuple[Row, ...]

    @property
    def models(self) -> tuple[Model, ...]:
        """Of the models with known values those that have some here."""
        return tuple(
            model
            for model in MODELS
            if any(row.benchmark.value(model) is not None for row in self.rows)
        )


def task_titles(report: Report) -> dict[str, str]:
    """Every task that a run has, in their order, by its name: what it is called."""
    return {task.task: task.title for run in report.runs for task in run.results.tasks}


def groups_of(tasks: Sequence[TaskResult]) -> list[str]:
    """The groups that any of them has, by name."""
    return sorted({group for task in tasks for group in task.groups})


def collect(folders: Sequence[Path]) -> Report:
    """The report of runs. ValueError where a folder has none, or it is damaged."""
    found = [read_results(folder) for folder in folders]
    twice = {name for name, count in Counter(each.model for each in found).items() if count > 1}
    runs = tuple(
        _run(folder, results, named=results.model in twice)
        for folder, results in zip(folders, found, strict=True)
    )
    rows = [Row(each, tuple(cell_of(run.results, each) for run in runs)) for each in BENCHMARKS]
    return Report(runs, tuple(row for row in rows if any(row.cells)))


def as_json(report: Report) -> dict[str, Any]:
    """For programs; shares of one."""
    return {
        "runs": [
            {"name": run.name, **dataclasses.asdict(run.results), "chance": run.chance}
            | {"contamination": run.contamination and dataclasses.asdict(run.contamination)}
            for run in report.runs
        ],
        "benchmarks": [_row(row) for row in report.rows],
        "sources": SOURCES,
    }


def _run(folder: Path, results: Results, *, named: bool) -> Run:
    samples = {task.task: list(read_samples(folder, task.task)) for task in results.tasks}
    name = f"{results.model} ({folder.resolve().name})" if named else results.model
    chance = {}
    for task in results.tasks:
        endings = [len(s.logprobs) for s in samples[task.task] if s.logprobs]
        if task.metric in _CHOSEN and endings:
            chance[task.task] = sum(1 / count for count in endings) / len(endings)
    return Run(name, results, samples, chance, read_contamination(folder))


def cell_of(results: Results, benchmark: Benchmark) -> Cell | None:
    """A run's score of a benchmark; None where it has no part of it with the right shots."""
    scores = {part.task: _score(results, part) for part in benchmark.parts}
    found = [score for score in scores.values() if score is not None]
    if not found:
        return None
    missing = tuple(task for task, score in scores.items() if score is None)
    (first, *others) = benchmark.parts
    task = None if others or first.over else _task(results, first.task)
    return Cell(mean_of_groups(found), missing, task.metric if task else "")


def _score(results: Results, part: Part) -> Score | None:
    task = _task(results, part.task)
    if task is None or part.shots not in (None, task.shots):
        return None
    if part.over is None or not task.groups:
        return task.score
    mean = mean_of_groups if part.over == "groups" else mean_of_questions
    return mean(list(task.groups.values()))


def _task(results: Results, name: str) -> TaskResult | None:
    return next((task for task in results.tasks if task.task == name), None)


def _row(row: Row) -> dict[str, Any]:
    benchmark = row.benchmark
    values = {f"{m.family} {m.name}": benchmark.value(m) for m in MODELS}
    return {
        "title": benchmark.title,
        "source": benchmark.source,
        "better": benchmark.better,
        "scores": [
            cell and dataclasses.asdict(cell) | {"interval": interval(cell.score, cell.metric)}
            for cell in row.cells
        ],
        "reference": values,
    }
