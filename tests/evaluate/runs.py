"""Folders of evaluations, made up for tests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from puna.evaluate.results import Results, Sample, Score, TaskResult, write_results


def sample(id_: str, value: float, *, metric: str = "acc", **others: Any) -> Sample:
    """A question of one metric; its text is its id's."""
    values = {"question": f"Question {id_}?", "answer": f"answer {id_}", "given": f"given {value}"}
    return Sample(id=id_, metrics={metric: value}, **values | others)


def score(values: Sequence[float]) -> Score:
    """Their mean and its standard error."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    return Score(float(np.mean(values)), error, len(values))


def task(name: str, samples: Sequence[Sample], *, metric: str = "acc", **others: Any) -> TaskResult:
    """The figures of some samples, by group where they have any."""
    groups = sorted({s.group for s in samples if s.group})
    metrics = dict.fromkeys(m for s in samples for m in s.metrics)
    values = {"title": name, "shots": 0, "metric": metric} | others

    def of(name: str, chosen: Sequence[Sample]) -> Score:
        return score([s.metrics[name] for s in chosen if name in s.metrics])

    return TaskResult(
        task=name,
        metrics={m: of(m, samples) for m in metrics},
        groups={g: of(values["metric"], [s for s in samples if s.group == g]) for g in groups},
        **values,
    )


def write_run(
    folder: Path, tasks: dict[str, Sequence[Sample]], *, model: str = "cria", **by_task: Any
) -> Path:
    """Writes a run; `by_task` gives what else a task's `TaskResult` has."""
    (folder / "samples").mkdir(parents=True)
    for name, samples in tasks.items():
        text = "".join(json.dumps(dataclasses.asdict(s)) + "\n" for s in samples)
        (folder / "samples" / f"{name}.jsonl").write_text(text)
    results = tuple(task(name, s, **by_task.get(name, {})) for name, s in tasks.items())
    settings = {"model": model, "limit": None}
    write_results(folder, Results(model, "leaderboard", settings, results, 12.5))
    (folder / "config.json").write_text(json.dumps(settings))
    return folder
