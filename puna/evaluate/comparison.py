"""Two evaluations compared question by question; they must have asked the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from puna.evaluate.paired import Paired, holm, paired
from puna.evaluate.results import Sample, TaskResult, read_results, read_samples

_EXAMPLES = 3  # of each kind


@dataclass(frozen=True, slots=True)
class Example:
    """A question that the models answered with other success; `a` and `b` are the figures."""

    id: str
    group: str | None
    question: str
    answer: str
    given_a: str
    given_b: str
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """A task: `result` by the metric that counts, and `p_holm`, corrected for all tasks.

    `left_out` counts the questions of which a run could not measure the answer.
    """

    task: str
    title: str
    shots: int
    metric: str
    result: Paired
    p_holm: float
    left_out: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Run b against run a; `only_a` and `only_b` are tasks that one alone has."""

    a: str
    b: str
    tasks: tuple[TaskComparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_runs(a: Path, b: Path) -> RunComparison:
    """Compares the tasks that both runs have.

    ValueError, which names the task, where they differ in the shots, the metric or the questions,
    and where they have no task in common.
    """
    before, after = read_results(a), read_results(b)
    of_a, of_b = ({task.task: task for task in run.tasks} for run in (before, after))
    both = [name for name in of_a if name in of_b]
    if not both:
        raise ValueError(
            f"{a} and {b} have no task in common: one has {', '.join(of_a) or 'none'}, the other "
            f"{', '.join(of_b) or 'none'}"
        )
    for name in both:
        _check_same_task(of_a[name], of_b[name])
    compared = [_compared(a, b, of_a[name]) for name in both]
    corrected = holm([each.result.p for each in compared])
    return RunComparison(
        before.model,
        after.model,
        tuple(replace(each, p_holm=p) for each, p in zip(compared, corrected, strict=True)),
        only_a=tuple(name for name in of_a if name not in of_b),
        only_b=tuple(name for name in of_b if name not in of_a),
    )


def _compared(a: Path, b: Path, task: TaskResult) -> TaskComparison:
    """A task by itself: as if it were the only one."""
    asked, metric = _pairs(a, b, task), task.metric
    pairs = [pair for pair in asked if all(metric in sample.metrics for sample in pair)]
    try:
        result = paired(
            [x.metrics[metric] for x, _ in pairs], [y.metrics[metric] for _, y in pairs]
        )
    except ValueError as error:
        raise ValueError(f"{task.task}: {error}") from None
    return TaskComparison(
        task.task, task.title, task.shots, metric, result, result.p, len(asked) - len(pairs),
        _examples(pairs, metric),
    )  # fmt: skip


def _check_same_task(a: TaskResult, b: TaskResult) -> None:
    for what in ("shots", "metric"):
        ours, theirs = getattr(a, what), getattr(b, what)
        if ours != theirs:
            raise ValueError(
                f"{a.task}: one run has the {what} {ours}, the other {theirs}; evaluate both alike"
            )


def _pairs(a: Path, b: Path, task: TaskResult) -> list[tuple[Sample, Sample]]:
    """The samples of both, by question, in a's order."""
    ours, theirs = (_by_question(folder, task) for folder in (a, b))
    missing = [key for key in ours if key not in theirs] + [
        key for key in theirs if key not in ours
    ]
    if missing:
        group, id_ = missing[0]
        where = f" ({group})" if group else ""
        raise ValueError(
            f"{task.task}: {len(missing)} questions are in one run alone, such as {id_}{where}; "
            "evaluate both with the same limit and seed"
        )
    for (_, id_), mine in ours.items():
        other = theirs[mine.group, id_]
        if (mine.question, mine.answer) != (other.question, other.answer):
            raise ValueError(
                f"{task.task}: question {id_} is another one in the two runs; evaluate both with "
                "the same data and prompts"
            )
    return [(mine, theirs[key]) for key, mine in ours.items()]


def _by_question(folder: Path, task: TaskResult) -> dict[tuple[str | None, str], Sample]:
    found: dict[tuple[str | None, str], Sample] = {}
    for sample in read_samples(folder, task.task):
        key = (sample.group, sample.id)
        if key in found:
            raise ValueError(f"{folder}: {task.task} has question {sample.id} twice")
        found[key] = sample
    return found


def _examples(pairs: list[tuple[Sample, Sample]], metric: str) -> tuple[Example, ...]:
    """Those that changed most: a few whose figure is higher in b, then a few where it is lower."""
    changes = [(y.metrics[metric] - x.metrics[metric], x, y) for x, y in pairs]
    higher = sorted((c for c in changes if c[0] > 0), key=lambda c: -c[0])[:_EXAMPLES]
    lower = sorted((c for c in changes if c[0] < 0), key=lambda c: c[0])[:_EXAMPLES]
    return tuple(
        Example(x.id, x.group, x.question, x.answer, x.given, y.given, x.metrics[metric],
                y.metrics[metric])
        for _, x, y in [*higher, *lower]
    )  # fmt: skip
