"""The report to read: Markdown with its plots beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from puna.evaluate.contamination.subsets import SUBSETS
from puna.evaluate.reference import SOURCES
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
    task_lines,
    task_notes,
)
from puna.report.markdown import plain, table


def markdown(report: Report, plots: Sequence[Path]) -> str:
    """The report as a document; `plots` lie beside it."""
    lines = [f"# {plain(' and '.join(run.name for run in report.runs))}", ""]
    lines += _beside(report)
    lines += [part for plot in plots for part in (f"![{plot.stem}]({plot.name})", "")]
    lines += _tasks(report)
    lines += _groups(report)
    lines += [line for run in report.runs for line in _contamination(run)]
    lines += ["## Configuration", ""]
    for run in report.runs:
        # Every line of it begins with a brace or a space, so none ends the block.
        settings = json.dumps(run.results.settings, indent=2)
        lines += [plain(run.name), "", "```json", settings, "```", ""]
    return "\n".join(lines)


def _beside(report: Report) -> list[str]:
    if not report.rows:
        return []
    head = ["benchmark", *(run.name for run in report.runs), *map(name_of, report.models), "from"]
    rows = []
    for row in report.rows:
        ours = [NONE if cell is None else measured(cell.score) for cell in row.cells]
        values = [row.benchmark.value(model) for model in report.models]
        theirs = [NONE if value is None else points(value) for value in values]
        rows.append([row.benchmark.title, *ours, *theirs, row.benchmark.source])
    used = dict.fromkeys(row.benchmark.source for row in report.rows)
    said = [f"{name}: {SOURCES[name]}." for name in used] + notes(report)
    return [
        "## Beside other models", "", "Per cent, ± standard errors.", "", *table(head, rows), "",
        *(f"- {plain(note)}" for note in said), "",
    ]  # fmt: skip


def _tasks(report: Report) -> list[str]:
    head = ["task", "model", "shots", "questions", "metric", "per cent", "95 % interval", "chance"]
    rows = [
        [
            line.task.title, line.run.name, str(line.task.shots), f"{line.score.questions:,}",
            f"{line.metric} (counts)" if line.counts else line.metric,
            measured(line.score, line.metric), ranged(line.score, line.metric), line.chance,
        ]
        for line in task_lines(report)
    ]  # fmt: skip
    said = [f"- {plain(title)}: {plain(text)}" for title, text in task_notes(report).items()]
    return ["## Tasks", "", *table(head, rows), "", *said, ""]


def _groups(report: Report) -> list[str]:
    lines = []
    for name, title in task_titles(report).items():
        found = [(run, task) for run in report.runs if (task := run.task(name)) and task.groups]
        if not found:
            continue
        metric = found[0][1].metric
        rows = [
            [group, *(measured(t.groups[group], metric) if group in t.groups else NONE
                      for _, t in found)]
            for group in groups_of([task for _, task in found])
        ]  # fmt: skip
        for said, mean in MEANS.items():
            means = (measured(mean(list(t.groups.values())), metric) for _, t in found)
            rows.append([said, *means])
        lines += [f"## {plain(title)}: {plain(metric)} by group", ""]
        lines += [*table(["group", *(run.name for run, _ in found)], rows), ""]
    return lines


def _contamination(run: Run) -> list[str]:
    if run.contamination is None:
        return []
    titles = [f"{name}: {what}" for name in SUBSETS for what in ("score (n)", "Z")]
    head = ["task", "least span", "contaminated", *titles, "has helped"]
    rows = []
    for task in run.contamination.tasks:
        at = task.shown
        cells = [part for each in at.subsets for part in in_words(each)]
        share = f"{100 * at.share:.1f} %"
        rows.append([task.title, str(at.length), share, *cells, "yes" if at.helped else "no"])
    return [f"## Contamination of {plain(run.name)}", "", *table(head, rows), ""]
