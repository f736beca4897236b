"""The report's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_flow(report: dict[str, Any], path: Path) -> Path:
    """Where each source's characters went: kept, or lost to which step."""
    from matplotlib import colormaps

    figure, axes = _figure(0.6 + 0.45 * len(report["sources"]) + 1)
    names = list(report["sources"])
    totals = [max(report["sources"][name]["characters_in"], 1) for name in names]
    steps = [step for step in report["steps"] if step != "tokenize"]
    colors = colormaps["tab20"].colors  # type: ignore[attr-defined]
    lost = {step: [_lost(report, step, name) for name in names] for step in steps}
    kept = [total - sum(losses[i] for losses in lost.values()) for i, total in enumerate(totals)]
    left = [0.0] * len(names)
    parts = {"kept": kept} | {step: losses for step, losses in lost.items() if any(losses)}
    for number, (part, values) in enumerate(parts.items()):
        shares = [100 * value / total for value, total in zip(values, totals, strict=True)]
        color = "#b8c4bb" if part == "kept" else colors[(number - 1) % len(colors)]
        axes.barh(names, shares, left=left, color=color, label=part)
        left = [begin + share for begin, share in zip(left, shares, strict=True)]
    axes.set_xlabel("% of the characters that were read")
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _save(figure, path)


def plot_mix(report: dict[str, Any], path: Path) -> Path:
    """Each source's share of the tokens, and of the mix after up-sampling."""
    figure, axes = _figure(0.6 + 0.6 * len(report["sources"]))
    names = list(report["sources"])
    for offset, key, label, color in (
        (-0.2, "share", "of the tokens", "#b8c4bb"),
        (0.2, "weight", "of the mix", "tab:blue"),
    ):
        values = [100 * report["sources"][name][key] for name in names]
        bars = axes.barh([i + offset for i in range(len(names))], values, 0.38, label=label,
                         color=color)  # fmt: skip
        axes.bar_label(bars, fmt="%.1f %%", padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("%")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return _save(figure, path)


def _lost(report: dict[str, Any], step: str, source: str) -> int:
    tally = report["steps"][step].get(source)
    return tally["characters_in"] - tally["characters_out"] if tally else 0


def _figure(height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, max(height, 2)), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)
    return path
