"""The report's files in a build: a record for programs, a page to look at, text to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from puna.data.pipeline.plots import plot_flow, plot_mix
from puna.data.pipeline.report import collect
from puna.data.pipeline.report_html import page
from puna.data.pipeline.report_markdown import markdown


def write_report(folder: Path) -> dict[str, Any]:
    """Writes report.json, report.html, report.md and its plots into a build; returns the record."""
    report = collect(folder)
    name = folder.resolve().name
    plots = [plot_flow(report, folder / "flow.png")]
    if report["found"]["tokens"]:
        plots.append(plot_mix(report, folder / "mix.png"))
    _put(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    _put(folder / "report.html", page(report, name))
    _put(folder / "report.md", markdown(report, name, plots))
    return report


def _put(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
