"""The report's files: a page to look at, text to read, a record for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from puna.evaluate.report.collect import Report, as_json, collect
from puna.evaluate.report.markdown import markdown
from puna.evaluate.report.page import page
from puna.evaluate.report.plots import plot_benchmarks, plot_groups
from puna.formats.files import atomic_file


def write_report(runs: Sequence[Path], out: Path) -> Report:
    """Writes report.html, report.md, report.json and plots into `out`; returns what they say.

    ValueError where a folder holds no evaluation, or a damaged one; then nothing is written.
    """
    report = collect(runs)
    shown = page(report)
    out.mkdir(parents=True, exist_ok=True)
    plots = [plot_benchmarks(report, out / "benchmarks.png")] if report.rows else []
    divided = dict.fromkeys(t.task for run in report.runs for t in run.results.tasks if t.groups)
    plots += [plot_groups(report, task, out / f"{task}.png") for task in divided]
    _write(out / "report.json", json.dumps(as_json(report), indent=1) + "\n")
    _write(out / "report.md", markdown(report, plots))
    _write(out / "report.html", shown)
    return report


def _write(path: Path, text: str) -> None:
    with atomic_file(path, overwrite=True) as file:
        file.write(text.encode())
