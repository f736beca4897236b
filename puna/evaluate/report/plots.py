"""The report's pictures, for where there is no page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from puna.evaluate.means import RANGES, placed, range_of
from puna.evaluate.report.collect import Report, groups_of
from puna.evaluate.report.wording import name_of
from puna.evaluate.results import Score
from puna.formats.files import atomic_file
from puna.report.markup import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_benchmarks(report: Report, path: Path) -> Path:
    """Bars of each benchmark with 95 % intervals, paler those of others."""
    from matplotlib import colormaps

    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    count = len(report.runs) + len(report.models)
    figure, axes = _figure(0.6 + len(report.rows) * (0.35 + 0.16 * count))
    height = 0.85 / count
    for place, run in enumerate(report.runs):
        found = [(y, row.cells[place]) for y, row in enumerate(report.rows)]
        scores = [(y + place * height, cell.score, cell.metric) for y, cell in found if cell]
        _bars(axes, scores, height, _text(run.name), colors[place % 10])
    for number, model in enumerate(report.models, len(report.runs)):
        values = [(y, row.benchmark.value(model)) for y, row in enumerate(report.rows)]
        known = [(y + number * height, 100 * value) for y, value in values if value is not None]
        axes.barh(*zip(*known, strict=True), height * 0.9, color=colors[number % 10], alpha=0.4,
                  label=name_of(model))  # fmt: skip
    middle = (count - 1) * height / 2
    axes.set_yticks([y + middle for y in range(len(report.rows))],
                    [row.benchmark.title for row in report.rows])  # fmt: skip
    return _save(figure, axes, path)


def plot_groups(report: Report, name: str, path: Path) -> Path:
    """Bars of each group of a task with 95 % intervals."""
    from matplotlib import colormaps

    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    found = [(run, task) for run in report.runs if (task := run.task(name)) and task.groups]
    groups = groups_of([task for _, task in found])
    metric, height = found[0][1].metric, 0.85 / len(found)
    figure, axes = _figure(0.8 + len(groups) * (0.06 + 0.14 * len(found)))
    for place, (run, task) in enumerate(found):
        scores = [
            (y + place * height, task.groups[group], metric)
            for y, group in enumerate(groups)
            if group in task.groups
        ]
        _bars(axes, scores, height, _text(run.name), colors[place % 10])
    middle = (len(found) - 1) * height / 2
    places = [y + middle for y in range(len(groups))]
    axes.set_yticks(places, list(map(_text, groups)), fontsize=7)
    axes.margins(y=0.01)
    return _save(figure, axes, path, metric)


def _bars(
    axes: Any, scores: list[tuple[float, Score, str]], height: float, label: str, color: Any
) -> None:
    """Bars of scores at their places, by their metrics."""
    if not scores:
        return
    drawn = [(place, *placed(score, metric)) for place, score, metric in scores]
    places, values, ends = zip(*drawn, strict=True)
    errors = [(value - low, high - value) for value, (low, high) in zip(values, ends, strict=True)]
    axes.barh(places, [100 * value for value in values], height * 0.9, color=color, label=label,
              xerr=100 * np.array(errors).T, error_kw={"elinewidth": 1, "capsize": 2})  # fmt: skip


def _text(text: str) -> str:
    """What is drawn as it is: no mathematics, no character that is none; its beginning."""
    return visible(text)[:60].replace("$", r"\$")


def _figure(height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, max(height, 2)), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, axes: Any, path: Path, metric: str = "") -> Path:
    axes.set_xlim(0, 100)
    if metric in RANGES:
        axes.set_xticks((0, 50, 100), [f"{end:g}" for end in np.linspace(*range_of(metric), 3)])
    axes.set_xlabel(f"{metric or 'per cent'}, with 95 % intervals of what was measured")
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    with atomic_file(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=130)
    return path
