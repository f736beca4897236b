"""The report to read: Markdown with its plots beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from puna.report.markdown import plain, table

_FOUND_WORDS = {
    "exact_duplicates": "documents that were there already",
    "near_duplicates": "near-duplicate documents",
    "boilerplate_characters": "characters of boilerplate",
    "emails": "e-mail addresses replaced",
    "phones": "telephone numbers replaced",
    "ips": "IP addresses replaced",
    "contaminated_paragraphs": "paragraphs of evaluation sets cut",
    "contaminated_documents": "documents dropped for evaluation sets in them",
    "tokens": "tokens",
}


def markdown(report: dict[str, Any], name: str, plots: list[Path]) -> str:
    """The report as a page."""
    lines = [f"# {name}", ""]
    if not report["complete"]:
        lines += ["**This build is not finished**; what is below is of the tasks that are.", ""]
    lines += _sources(report)
    lines += ["## Found", ""]
    lines += [f"- {report['found'][key]:,} {words}" for key, words in _FOUND_WORDS.items()]
    lines += ["", *(f"![{plot.stem}]({plot.name})" for plot in plots), ""]
    lines += _steps(report)
    lines += _examples(report)
    return "\n".join(lines)


def _sources(report: dict[str, Any]) -> list[str]:
    rows = [
        [
            source, s["licence"], f"{s['documents_in']:,}", f"{s['documents_out']:,}",
            f"{s['characters_in'] / 1e6:.1f}", f"{s['characters_out'] / 1e6:.1f}",
            f"{s['tokens']:,}", f"{s['share']:.1%}", f"{s['upsample']:g}", f"{s['weight']:.1%}",
        ]
        for source, s in report["sources"].items()
    ]  # fmt: skip
    head = ["source", "licence", "documents in", "out", "M characters in", "out", "tokens",
            "share", "up-sampled", "share of the mix"]  # fmt: skip
    return ["## Sources", "", *table(head, rows), ""]


def _steps(report: dict[str, Any]) -> list[str]:
    lines = ["## Steps", ""]
    for step, sources in report["steps"].items():
        rows = [
            [
                source, f"{t['documents_in']:,}", f"{t['documents_out']:,}",
                f"{sum(t['characters_dropped'].values()):,}", f"{t['characters_removed']:,}",
                _counts(t["dropped"]), _counts(t["events"]),
            ]
            for source, t in sources.items()
        ]  # fmt: skip
        head = ["source", "documents in", "out", "characters dropped", "characters taken out",
                "why dropped", "and"]  # fmt: skip
        lines += [f"### {step}", "", *table(head, rows), ""]
    return lines


def _examples(report: dict[str, Any]) -> list[str]:
    lines = ["## Examples of what was dropped", ""] if report["examples"] else []
    for example in report["examples"]:
        title = f" ({plain(example['title'])})" if example["title"] else ""
        lines.append(
            f"- {example['step']}, {example['source']}: **{plain(example['reason'])}**, "
            f"`{example['id']}`{title}"
        )
        if example["excerpt"]:
            lines += ["", f"  > {plain(example['excerpt'])}", ""]
    return lines


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered)
