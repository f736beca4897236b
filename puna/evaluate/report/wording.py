"""How a report writes its figures, and which samples it shows, on a page and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puna.evaluate.contamination.subsets import Subset
from puna.evaluate.means import RANGES, interval, mean_of_groups, mean_of_questions, range_of
from puna.evaluate.reference import Model
from puna.evaluate.report.collect import Report, Run, task_titles
from puna.evaluate.results import Sample, Score, TaskResult

_LESS_IS_BETTER = ("toxic", "false_refusal")
# Of a task's groups: what is said of a mean, and how it is made.
MEANS = {
    "mean of groups, each counted alike": mean_of_groups,
    "mean by questions": mean_of_questions,
}
NONE = "–"
SHOWN = 3  # samples of each kind, of each task
_LONGEST = 1500  # characters of a sample's text that are shown


def points(share: float) -> str:
    """A share in per cent, without the sign: 57.6, 6.24, 43.0."""
    text = f"{100 * share:.2f}"
    return text.removesuffix("0")


def measured(score: Score, metric: str = "") -> str:
    """A score with its standard error: a share in per cent, another figure as it is."""
    if not score.questions:
        return NONE
    if metric in RANGES:
        return f"{score.value:.2f} ± {score.stderr:.2f}"
    return f"{100 * score.value:.1f} ± {100 * score.stderr:.1f}"


def ranged(score: Score, metric: str = "") -> str:
    """The 95 % interval of a score, likewise."""
    if not score.questions:
        return NONE
    low, high = interval(score, metric)
    if metric in RANGES:
        return f"{low:.2f} to {high:.2f}"
    return f"{100 * low:.1f} to {100 * high:.1f}"


def in_words(subset: Subset) -> tuple[str, str]:
    """A subset's mean with its number of questions, and its Z."""
    if subset.mean is None:
        return NONE, NONE
    z = NONE if subset.z is None else f"{subset.z:+.2f}"
    return f"{100 * subset.mean:.1f} ({subset.count:,})", z


def scale(metric: str) -> str:
    """What a bar of this metric goes from and to."""
    least, most = range_of(metric)
    return f"{least:g} to {most:g}" if metric in RANGES else "0 to 100 %"


def name_of(model: Model) -> str:
    """A model's name where its family does not stand over it."""
    return model.name if model.family == "OpenAI" else f"{model.family} {model.name}"


def notes(report: Report) -> list[str]:
    """What to know of the benchmarks, and of which of them a run has not all tasks."""
    said = [f"{r.benchmark.title}: {r.benchmark.note}" for r in report.rows if r.benchmark.note]
    return said + [
        f"{row.benchmark.title}: of {run.name} without {', '.join(cell.missing)}."
        for row in report.rows
        for run, cell in zip(report.runs, row.cells, strict=True)
        if cell is not None and cell.missing
    ]


@dataclass(frozen=True, slots=True)
class Line:
    """A run's figure of a task by one metric; `counts` where that is the task's."""

    run: Run
    task: TaskResult
    metric: str
    score: Score
    counts: bool

    @property
    def chance(self) -> str:
        """What blind choice scores, "" where that has no meaning."""
        known = self.counts and self.task.task in self.run.chance
        return f"{100 * self.run.chance[self.task.task]:.1f}" if known else ""


def task_lines(report: Report) -> list[Line]:
    """Every metric of every task, that of all runs together, the one that counts first."""
    found = []
    for name in task_titles(report):
        tasks = [(run, task) for run in report.runs if (task := run.task(name))]
        metrics = dict.fromkeys(m for _, t in tasks for m in (t.metric, *t.metrics))
        found += [
            Line(run, task, metric, task.metrics[metric], metric == task.metric)
            for metric in metrics
            for run, task in tasks
            if metric in task.metrics
        ]
    return found


def task_notes(report: Report) -> dict[str, str]:
    """What to know of a task, by its title."""
    said: dict[str, dict[str, None]] = {}
    for run in report.runs:
        for task in run.results.tasks:
            said.setdefault(task.title, {}).update(dict.fromkeys(task.notes))
    return {title: " ".join(each) for title, each in said.items() if each}


def split_samples(run: Run, task: TaskResult) -> tuple[list[Sample], list[Sample]]:
    """Some that were answered rightly and some wrongly, from the whole length of the task."""
    samples = run.samples[task.task]
    known = [sample for sample in samples if task.metric in sample.metrics]
    is_right = [(s.metrics[task.metric] >= 0.5) != (task.metric in _LESS_IS_BETTER) for s in known]
    right = [s for s, yes in zip(known, is_right, strict=True) if yes]
    wrong = [s for s, yes in zip(known, is_right, strict=True) if not yes]
    return _spread(right), _spread(wrong)


def short(text: str) -> str:
    """A text as far as it is shown."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    count = min(SHOWN, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]
