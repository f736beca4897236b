"""What an evaluation leaves: its results, and what the model answered to each question.

A folder has `config.json` (the evaluation as resolved), `results.json` (`Results`),
`samples/TASK.jsonl` (a `Sample` a line) and `seconds.jsonl` (what each run took). Reports and
comparisons read these and run no model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.formats.files import atomic_file


@dataclass(frozen=True, slots=True)
class Sample:
    """One question. `metrics` are of this question alone (`acc` 0.0 or 1.0, `mc2` a share).

    `logprobs` are of the endings, in their order, and None for what is generated. `group` is what
    a task divides into: an MMLU subject, a BBH task, a group of people.
    """

    id: str
    question: str
    answer: str
    given: str
    metrics: dict[str, float]
    logprobs: list[float] | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over questions and its standard error, both as shares of one."""

    value: float
    stderr: float
    questions: int


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A task's figures; `metric` names the one of `metrics` that counts.

    `groups` are `metric` by group. `notes` say what a reader must know, such as shots that come
    from another split.
    """

    task: str
    title: str
    shots: int
    metric: str
    metrics: dict[str, Score]
    groups: dict[str, Score] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> Score:
        """The figure that counts."""
        return self.metrics[self.metric]


@dataclass(frozen=True, slots=True)
class Results:
    """All tasks of one evaluation of one model; `settings` are what `config.json` has, `seconds`
    those of all runs that it took."""

    model: str
    suite: str
    settings: dict[str, Any]
    tasks: tuple[TaskResult, ...]
    seconds: float


def begin(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the folder of an evaluation with its `config.json`, or goes on with one; gives the
    settings as they will be read again.

    ValueError for a folder that holds other things, or an evaluation with other settings.
    """
    values: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the name of a folder")
    if path.exists():
        try:
            before = dict(json.loads(path.read_bytes()))
        except (TypeError, ValueError):
            before = {}
        names = sorted(before.keys() | values.keys())
        if others := [name for name in names if before.get(name, ...) != values.get(name, ...)]:
            raise ValueError(
                f"{folder} is of an evaluation with other settings ({', '.join(others)}); choose "
                "another --out"
            )
        return values
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other things; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")
    return values


@contextlib.contextmanager
def clock(folder: Path) -> Iterator[Callable[[], float]]:
    """What gives the seconds of all runs in a folder up to now.

    Those of this one are kept however it ends, unless it is killed.
    """
    path = folder / "seconds.jsonl"  # a number a run
    before = math.fsum(map(float, path.read_text().split())) if path.exists() else 0.0
    began = time.monotonic()
    try:
        yield lambda: before + time.monotonic() - began
    finally:
        with path.open("a") as file:
            file.write(f"{time.monotonic() - began:.3f}\n")


def write_samples(folder: Path, task: str, samples: Iterable[Sample]) -> None:
    """Writes all samples of a task, in the place of any that were there."""
    with atomic_file(folder / "samples" / f"{task}.jsonl", overwrite=True) as file:
        for sample in samples:
            file.write(json.dumps(dataclasses.asdict(sample)).encode() + b"\n")


def write_results(folder: Path, results: Results) -> None:
    """Writes `results.json`."""
    with atomic_file(folder / "results.json", overwrite=True) as file:
        file.write(json.dumps(dataclasses.asdict(results), indent=1).encode() + b"\n")


def read_results(folder: Path) -> Results:
    """The results that a folder has. ValueError where there are none, or they are damaged."""
    path = folder / "results.json"
    try:
        values = json.loads(path.read_bytes())
        tasks = tuple(_task(task) for task in values.pop("tasks"))
        return Results(**values, tasks=tasks)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no results.json; is it the folder of an evaluation?"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def read_samples(folder: Path, task: str) -> Iterator[Sample]:
    """The samples of a task, in the order of its questions. ValueError: none, or damaged."""
    path = folder / "samples" / f"{task}.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} has no samples of {task}")
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            yield Sample(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} line {number} is damaged: {error}") from None


def _task(values: dict[str, Any]) -> TaskResult:
    scores = ("metrics", "groups")
    plain = {name: value for name, value in values.items() if name not in scores}
    metrics, groups = ({k: Score(**v) for k, v in values[name].items()} for name in scores)
    notes = tuple(plain.pop("notes"))
    task = TaskResult(**plain, metrics=metrics, groups=groups, notes=notes)
    # It becomes a file's name, and results may come from anyone.
    if not re.fullmatch(r"\w[\w.-]*", task.task):
        raise ValueError(f"{task.task!r} is no task's name")
    if task.metric not in metrics:
        raise ValueError(f"{task.task} has no {task.metric}")
    return task
