"""Scaling curves as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from puna.plan.run import Point

# Colours that the colour-blind tell apart (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def plot_scaling(curves: Mapping[str, Sequence[Point]], path: Path, title: str) -> Path:
    """Draws tokens/s and efficiency over the number of devices, a line a name of `curves`.

    Dashed is what all devices would do at the best speed of any point, dotted the plan before slow
    ranks and failures.
    ValueError where no curve has points.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, PercentFormatter

    if not any(curves.values()):
        raise ValueError("no number of devices has a plan; nothing is drawn")
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, gridspec_kw={"height_ratios": (1.6, 1)})
    for (name, points), colour in zip(curves.items(), _COLOURS * len(curves), strict=False):
        if not points:
            continue
        counts = [point.devices for point in points]
        each = max(point.planned / point.devices for point in points)
        top.plot(counts, [each * n for n in counts], "--", color=colour, alpha=0.5, linewidth=1)
        top.plot(counts, [p.planned for p in points], ":", color=colour, linewidth=1.4)
        top.plot(counts, [p.simulated for p in points], "o-", color=colour, label=name)
        bottom.plot(counts, [p.efficiency for p in points], "o-", color=colour, label=name)
        last = points[-1]
        top.annotate(
            f"{last.days:,.3g} days", (last.devices, last.simulated), textcoords="offset points",
            xytext=(0, -20), ha="center", fontsize=9, color=colour,
        )  # fmt: skip
    top.plot([], [], "--", color="gray", linewidth=1, label="perfect scaling")
    top.plot([], [], ":", color="gray", linewidth=1.4, label="planned, before slow ranks, failures")
    top.set_yscale("log")
    top.set_ylabel("tokens/s of all")
    top.yaxis.set_major_formatter(lambda value, _: _amount(value))
    bottom.set_ylabel("efficiency")
    bottom.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bottom.set_ylim(0, 1.08)
    bottom.set_xscale("log", base=2)
    bottom.set_xlabel("devices")
    counts = sorted({point.devices for points in curves.values() for point in points})
    shown = counts[:1]
    for count in counts[1:]:
        if count >= shown[-1] * max(1.5, (counts[-1] / counts[0]) ** (1 / 14)):
            shown.append(count)
    bottom.set_xticks(shown, [f"{n:,}" for n in shown])
    bottom.xaxis.set_minor_formatter(NullFormatter())
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines["right"].set_visible(False)
        axes.spines["top"].set_visible(False)
    top.legend(frameon=False, loc="upper left")
    figure.suptitle(title, x=0.02, ha="left", fontweight="bold")
    temporary = path.with_suffix(".partial")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)
    return path


def _amount(number: float) -> str:
    """3M, 2.5B."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:g}{letter}"
    return f"{number:g}"
