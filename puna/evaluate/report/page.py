"""The report as one page (`puna.report`)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from puna.evaluate.contamination.check import AtLength, Contamination, TaskContamination
from puna.evaluate.contamination.subsets import SUBSETS
from puna.evaluate.means import placed
from puna.evaluate.reference import MODELS, SOURCES, TRUTHFULQA
from puna.evaluate.report.collect import Report, Run, groups_of, task_titles
from puna.evaluate.report.wording import (
    MEANS,
    NONE,
    in_words,
    measured,
    name_of,
    notes,
    points,
    ranged,
    scale,
    short,
    split_samples,
    task_lines,
    task_notes,
)
from puna.evaluate.results import Sample, Score, TaskResult
from puna.report.markup import Markup, element, joined
from puna.report.page import figures, section
from puna.report.page import page as whole_page
from puna.report.tables import Cell, Column, interval_bar, legend, lines, table


def page(report: Report) -> str:
    """The page of a report (`collect.collect`)."""
    name = " and ".join(run.name for run in report.runs)
    parts = [element("h1", f"Evaluation of {name}"), _summary(report)]
    if report.rows:
        parts += [
            section("Beside other models", "Per cent, with the standard error of what was measured "
                    "here.", _beside(report), _sources(report)),
            section("With their intervals", "The line through a bar is the 95 % interval of what "
                    "was measured here. Grey: what others have.", _bars(report)),
        ]  # fmt: skip
    parts.append(
        section("Tasks", "Every metric; the one that counts is set apart. Chance is what a blind "
                "choice among the endings scores.", _tasks(report))
    )  # fmt: skip
    parts += _truthfulqa(report)
    parts += _groups(report)
    parts += _contamination(report)
    parts += [_samples(run) for run in report.runs]
    parts.append(
        section("Configuration", "What was evaluated, exactly.", *map(_settings, report.runs))
    )
    return whole_page(f"{name}: evaluation", *parts)


def _summary(report: Report) -> Markup:
    questions = sum(t.score.questions for run in report.runs for t in run.results.tasks)
    seconds = sum(run.results.seconds for run in report.runs)
    suites = dict.fromkeys(run.results.suite or "chosen tasks" for run in report.runs)
    return figures(
        (
            (", ".join(suites), "suite"),
            (f"{questions:,}", "questions"),
            (f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min", "in all"),
        )
    )


def _beside(report: Report) -> Markup:
    columns = [
        Column("benchmark", number=False),
        *(Column(run.name, "this evaluation") for run in report.runs),
        *(Column(model.name, model.family) for model in report.models),
        Column("from", number=False),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for row in report.rows:
        ours = [NONE if cell is None else measured(cell.score) for cell in row.cells]
        values = [row.benchmark.value(model) for model in report.models]
        theirs = [NONE if value is None else points(value) for value in values]
        rows.append([row.benchmark.title, *ours, *theirs, row.benchmark.source])
    return table(columns, rows)


def _sources(report: Report) -> Markup:
    used = dict.fromkeys(row.benchmark.source for row in report.rows)
    said = [f"{name}: {SOURCES[name]}." for name in used] + notes(report)
    return element("ul", *(element("li", text) for text in said), class_="notes")


def _bars(report: Report) -> Markup:
    kinds = {run.name: f"c{number % 10}" for number, run in enumerate(report.runs)}
    rows: list[list[Cell]] = []
    for row in report.rows:
        names, bars, values = [], [], []
        for run, cell in zip(report.runs, row.cells, strict=True):
            if cell is not None:
                names.append(_line(run.name))
                bars.append(_score_bar(kinds[run.name], run.name, cell.score, cell.metric))
                values.append(_line(measured(cell.score)))
        for model in report.models:
            value = row.benchmark.value(model)
            if value is not None:
                name = name_of(model)
                said = f"{name}: {points(value)} %"
                names.append(_line(name))
                bars.append(interval_bar("kept", value, None, said))
                values.append(_line(points(value)))
        rows.append([row.benchmark.title, lines(names), lines(bars), lines(values)])
    columns = [Column("benchmark", number=False), Column("model", number=False),
               Column("0 to 100 %", number=False), Column("per cent")]  # fmt: skip
    return table(columns, rows)


def _line(text: str) -> Markup:
    """Text that stays in one line, beside its bar."""
    return element("span", text, class_="line")


def _score_bar(kind: str, name: str, score: Score, metric: str = "") -> Markup:
    said = f"{name}: {measured(score, metric)}, 95 % interval {ranged(score, metric)}"
    return interval_bar(kind, *placed(score, metric), said)


def _tasks(report: Report) -> Markup:
    columns = [
        Column("task", number=False), Column("model", number=False), Column("shots"),
        Column("questions"), Column("metric", number=False), Column("per cent"),
        Column("95 % interval"), Column("chance"),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            line.task.title, line.run.name, str(line.task.shots), line.score.questions,
            element("strong", line.metric) if line.counts else line.metric,
            measured(line.score, line.metric), ranged(line.score, line.metric), line.chance,
        ]
        for line in task_lines(report)
    ]  # fmt: skip
    said = [
        element("li", element("strong", title), f": {text}")
        for title, text in task_notes(report).items()
    ]
    return joined([table(columns, rows), element("ul", *said, class_="notes")])


def _truthfulqa(report: Report) -> list[Markup]:
    """The leaderboard's measure and the paper's, which are not to be compared."""
    cells = {row.benchmark: row.cells for row in report.rows if row.benchmark in TRUTHFULQA}
    if not cells:
        return []
    rows: list[list[Cell]] = []
    for place, run in enumerate(report.runs):
        own = [cells[each][place] if each in cells else None for each in TRUTHFULQA]
        rows.append([run.name, *(NONE if cell is None else measured(cell.score) for cell in own)])
    for model in MODELS:
        values = [each.value(model) for each in TRUTHFULQA]
        if any(value is not None for value in values):
            rows.append([name_of(model), *(NONE if v is None else points(v) for v in values)])
    columns = [Column("model", number=False)]
    columns += [Column(each.title, each.source) for each in TRUTHFULQA]
    said = "Two measures on one set of questions, which are not to be compared."
    return [section("TruthfulQA", said, table(columns, rows))]


def _groups(report: Report) -> list[Markup]:
    """A section for each task that divides into groups: both means, and every group."""
    found = {
        title: [(run, task) for run in report.runs if (task := run.task(name)) and task.groups]
        for name, title in task_titles(report).items()
    }
    return [_of_groups(title, tasks) for title, tasks in found.items() if tasks]


def _of_groups(title: str, found: Sequence[tuple[Run, TaskResult]]) -> Markup:
    metric = found[0][1].metric
    rows: list[list[Cell]] = []
    for group in groups_of([task for _, task in found]):
        scores = [task.groups.get(group) for _, task in found]
        bars = [
            _score_bar(f"c{n % 10}", run.name, score, metric) if score else element("span", NONE)
            for n, ((run, _), score) in enumerate(zip(found, scores, strict=True))
        ]
        rows.append([
            group, next(score.questions for score in scores if score), lines(bars),
            *(NONE if score is None else measured(score, metric) for score in scores),
        ])  # fmt: skip
    names = [run.name for run, _ in found]
    columns = [Column("group", number=False), Column("questions"),
               Column(scale(metric), number=False), *map(Column, names)]  # fmt: skip
    means: list[list[Cell]] = [
        [said, *(measured(mean(list(task.groups.values())), metric) for _, task in found)]
        for said, mean in MEANS.items()
    ]
    shown = [table([Column("", number=False), *map(Column, names)], means)]
    kinds = [(f"c{number % 10}", run.name) for number, (run, _) in enumerate(found)]
    if len(found) > 1:
        shown.append(legend(kinds))
    said = f"{metric} by group; lines are 95 % intervals."
    return section(title, said, *shown, table(columns, rows))


def _contamination(report: Report) -> list[Markup]:
    return [_contaminated(run, run.contamination) for run in report.runs if run.contamination]


def _contaminated(run: Run, found: Contamination) -> Markup:
    said = (
        f"{run.name}, against {found.tokens:,} tokens of {found.documents:,} documents "
        f"({', '.join(found.sources)}). Contaminated tokens stand in spans that the training text "
        "has too: ten tokens that are the same, and at most four behind them that differ. Clean: "
        "under 20 % of a sample's tokens; dirty: 80 % or more. Contamination has helped where all "
        "four Z are beyond 2: the clean and the not dirty below, the others above."
    )
    shown = [(task, task.shown) for task in found.tasks]
    every = [(task, at) for task in found.tasks for at in task.lengths]
    return section(
        f"Contamination of {run.name}", said, _at_lengths(shown),
        element("details", element("summary", "At every least span"), _at_lengths(every)),
    )  # fmt: skip


def _at_lengths(found: Sequence[tuple[TaskContamination, AtLength]]) -> Markup:
    columns = [
        Column("task", number=False), Column("least span"), Column("contaminated"),
        *(Column(title, name) for name in SUBSETS for title in ("score (n)", "Z")),
        Column("has helped", number=False),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for task, at in found:
        cells = [part for each in at.subsets for part in in_words(each)]
        rows.append([task.title, str(at.length), at.share, *cells, "yes" if at.helped else "no"])
    return table(columns, rows)


def _samples(run: Run) -> Markup:
    shown = []
    for task in run.results.tasks:
        for kind, samples in zip(("right", "wrong"), split_samples(run, task), strict=True):
            if samples:
                summary = element("summary", f"{task.title}: answered {kind}")
                details = [part for each in samples for part in _sample(each, task)]
                shown.append(element("details", summary, *details))
    return section(f"Answers of {run.name}", "From the whole length of each task.", *shown)


def _sample(sample: Sample, task: TaskResult) -> list[Markup]:
    figure = f"{task.metric} {sample.metrics.get(task.metric, 0.0):.3g}"
    group = [Markup(" · "), element("span", sample.group)] if sample.group else []
    return [
        element("p", element("code", sample.id), *group, Markup(" · "), element("span", figure)),
        element("blockquote", element("bdi", short(sample.question)), class_="text"),
        table(
            [Column("", number=False), Column("", number=False)],
            [["right", element("bdi", short(sample.answer))],
             ["given", element("bdi", short(sample.given))]],
        ),
    ]  # fmt: skip


def _settings(run: Run) -> Markup:
    settings = json.dumps(run.results.settings, indent=2, ensure_ascii=False)
    return joined([element("h3", run.name), element("pre", element("code", settings))])
