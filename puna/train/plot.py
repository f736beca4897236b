"""A run's log as pictures."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from puna.train.log import Record, read_log
from puna.train.losses import perplexity
from puna.train.statistics import layer_order

_LINE = "#1f4e79"
# Colours that the colour-blind tell apart (Okabe and Ito).
COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vP"
_STATISTICS = {
    "gradient": "norm of the gradient",
    "weight": "norm of the weights",
    "update": "norm of the update / of the weights",
}


def plot_loss(run: Path) -> Path:
    """Draws `run`/log.jsonl as `run`/loss.png: the loss of each step, smoothed, and held out by
    source; learning rate; norm of the gradient. Over steps, with tokens above."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    records = [record for record in read_log(run / "log.jsonl") if "loss" in record]
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    top, middle, bottom = figure.subplots(
        3, sharex=True, gridspec_kw={"height_ratios": (3.4, 1, 1)}
    )
    steps = [record["step"] for record in records]
    _draw_losses(top, records)
    middle.plot(steps, [r["learning_rate"] for r in records], color=_LINE, linewidth=1.4)
    middle.set_ylabel("learning rate")
    middle.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    middle.set_ylim(bottom=0)
    norms = [r["grad_norm"] for r in records]
    bottom.plot(steps, norms, color=_LINE, alpha=0.3, linewidth=0.8)
    bottom.plot(steps, smooth(norms, _weight(norms)), color=_LINE, linewidth=1.4)
    bottom.set_ylabel("gradient norm")
    bottom.set_yscale("log")
    bottom.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bottom.minorticks_off()
    bottom.set_xlabel("optimizer step")
    for axes in (top, middle, bottom):
        if len(records) == 1:
            for line in axes.get_lines():
                line.set_marker("o")
        axes.grid(alpha=0.25)
        axes.spines["right"].set_visible(axes is top)
        axes.spines["top"].set_visible(axes is top)
    _tokens_above(top, records)
    figure.suptitle(run.resolve().name, x=0.02, ha="left", fontweight="bold")
    return save_picture(figure, run / "loss.png")


def _draw_losses(axes: Any, records: list[Record]) -> None:
    steps = [record["step"] for record in records]
    losses = [record["loss"] for record in records]
    smoothed = smooth(losses, _weight(losses))
    axes.plot(steps, losses, color=_LINE, alpha=0.25, linewidth=0.8, label="training, each step")
    last = f" {smoothed[-1]:.3f}" if smoothed else ""
    axes.plot(steps, smoothed, color=_LINE, linewidth=1.8, label=f"training, smoothed:{last}")
    for number, (name, points) in enumerate(held_out(records).items()):
        value = points[-1][1]
        label = f"held out{', ' + name if name else ''}: {value:.3f}"
        axes.plot(
            *zip(*points, strict=True),
            linestyle="-" if len(points) > 1 else "none",
            marker=MARKERS[number % len(MARKERS)],
            markersize=4.5,
            markevery=max(1, len(points) // 20),
            color=COLOURS[number % len(COLOURS)],
            linewidth=1.3,
            label=f"{label} (perplexity {perplexity(value):,.1f})",
        )
    axes.set_ylabel("loss (nats a token)")
    if len(losses) >= 100:  # the fall at the start would press the rest flat
        shown = smoothed[len(losses) // 20 :] + losses[len(losses) // 10 :]
        since = steps[len(steps) // 20]
        shown += [y for points in held_out(records).values() for x, y in points if x >= since]
        low, high = min(shown), max(shown)
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    right = axes.secondary_yaxis("right", functions=(np.exp, _safe_log))
    right.set_ylabel("perplexity")
    low, high = axes.get_ylim()
    right.set_yticks(_round_numbers(perplexity(low), perplexity(high)))
    right.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    right.minorticks_off()
    axes.legend(frameon=False, loc="upper right")


def held_out(records: list[Record]) -> dict[str, list[tuple[int, float]]]:
    """Steps and held-out losses of each source; of all under "" where there is but one."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if "held_out_loss" in record:
            losses = record.get("held_out_loss_by_source", {"": record["held_out_loss"]})
            for name, loss in losses.items():
                found.setdefault(name, []).append((record["step"], loss))
    return found


def _tokens_above(axes: Any, records: list[Record]) -> None:
    """A second scale: steps as the tokens that were seen by then."""
    if len(records) < 2:
        return
    steps = np.array([0, *(r["step"] for r in records)], dtype=float)
    tokens = np.array([0, *(r["tokens"] for r in records)], dtype=float)
    slope = tokens[-1] / steps[-1]

    def to_tokens(step: Any) -> Any:
        inside = np.interp(step, steps, tokens)
        return inside + slope * (np.minimum(step, 0) + np.maximum(step - steps[-1], 0))

    def to_steps(count: Any) -> Any:
        inside = np.interp(count, tokens, steps)
        return inside + (np.minimum(count, 0) + np.maximum(count - tokens[-1], 0)) / slope

    above = axes.secondary_xaxis("top", functions=(to_tokens, to_steps))
    above.set_xlabel("tokens")
    above.xaxis.set_major_formatter(lambda value, _: _amount(value))


def _amount(number: float) -> str:
    """3M, 2.5B, 1T."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:g}{letter}"
    return f"{number:g}"


def _weight(values: list[float]) -> float:
    """Of the past, in smoothing: that of 20 values, fewer where there are not 400."""
    return 1 - 1 / max(1, min(20, len(values) / 20))


def _safe_log(values: Any) -> Any:
    return np.log(np.maximum(values, 1e-12))


def _round_numbers(low: float, high: float) -> list[float]:
    """Six or so of 1, 2, 5, 10 ... between two perplexities, else evenly spaced ones."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(min(high, 1e12))) + 1)
    every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [number for number in every if low <= number <= high]
    if len(inside) < 3:
        return [float(f"{number:.3g}") for number in np.geomspace(low, high, 5)]
    return inside[:: -(-len(inside) // 8)]


def plot_statistics(run: Path) -> Path | None:
    """Draws the statistics of `run`/log.jsonl as `run`/statistics.png: layers and kinds of matrix
    over steps, as colours. None where the run took none."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    records = [record for record in read_log(run / "log.jsonl") if "statistics" in record]
    if not records:
        return None
    steps = [record["step"] for record in records]
    sides = layer_order(records[0]["statistics"]["weight"])
    rows = max(len(names) for names in sides)
    figure = Figure(figsize=(12, 3 * max(2.2, min(4, 0.17 * rows + 0.8))), layout="constrained")
    panels = figure.subplots(3, 2, sharex=True, squeeze=False)
    for line, (measure, title) in zip(panels, _STATISTICS.items(), strict=True):
        for axes, names in zip(line, sides, strict=True):
            values = np.array([[r["statistics"][measure][n] for r in records] for n in names])
            positive = values[values > 0]
            limits = (positive.min(), positive.max()) if positive.size else (1, 1)
            norm = LogNorm(limits[0], max(limits[1], limits[0] * 1.001))
            mesh = axes.pcolormesh(
                _edges(steps), np.arange(len(names) + 1), np.where(values > 0, values, np.nan),
                norm=norm, cmap="viridis",
            )  # fmt: skip
            every = -(-len(names) // 24)  # labels that can be read
            axes.set_yticks(np.arange(len(names))[::every] + 0.5, names[::every], fontsize=8)
            axes.invert_yaxis()
            axes.set_title(title, fontsize=10, loc="left")
            figure.colorbar(mesh, ax=axes, pad=0.01)
    for axes in panels[-1]:
        axes.set_xlabel("optimizer step")
    figure.suptitle(run.resolve().name, x=0.02, ha="left", fontweight="bold")
    return save_picture(figure, run / "statistics.png")


def _edges(steps: list[int]) -> list[float]:
    """Where the columns of these steps begin and end."""
    middles = [(a + b) / 2 for a, b in pairwise(steps)]
    width = steps[1] - steps[0] if len(steps) > 1 else 1
    return [
        steps[0] - width / 2,
        *middles,
        steps[-1] + (steps[-1] - middles[-1] if middles else 0.5),
    ]


def save_picture(figure: Any, path: Path) -> Path:
    temporary = path.with_suffix(".partial")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)
    return path


def smooth(values: list[float], weight: float = 0.95) -> list[float]:
    """Exponential moving average, corrected for its start."""
    out, mean, mass = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        out.append(mean / mass)
    return out
