"""Pictures of what was sampled: the best of K, and obedience over turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from puna.train.plot import COLOURS, MARKERS, save_picture
from puna.train.producers.best_of import Curve


def plot_best_of(curves: Mapping[float, Curve], path: Path) -> Path:
    """Draws `path` (.png): the reward of the best of K (with a 95 % band over prompts) and of the
    median, against K, for each temperature; as the paper's figures of rejection sampling."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (temperature, curve) in enumerate(sorted(curves.items())):
        colour = COLOURS[number % len(COLOURS)]
        best, error = np.array(curve["max"]), np.array(curve["max_standard_error"])
        axes.plot(
            curve["k"], best, color=colour, linewidth=1.8,
            marker=MARKERS[number % len(MARKERS)], markevery=max(1, len(best) // 10),
            markersize=4.5, label=f"T = {temperature:g}: {best[-1]:.3f}",
        )  # fmt: skip
        band = (best - 1.96 * error, best + 1.96 * error)
        axes.fill_between(curve["k"], *band, color=colour, alpha=0.12, linewidth=0)
        axes.plot(curve["k"], curve["median"], color=colour, linewidth=1.2, linestyle="--")
    axes.plot([], [], color="#555555", linewidth=1.8, label="best of K")
    axes.plot([], [], color="#555555", linewidth=1.2, linestyle="--", label="median of K")
    axes.set_xscale("log")
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= curve["k"][-1]]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_xlabel("K, samples of a prompt")
    axes.set_ylabel("reward")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return save_picture(figure, path)


def plot_obedience(models: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
    """Draws `path` (.png): the share of dialogs that keep to their instruction at each turn, with
    its 95 % interval, for each model (`obedience.by_turn`)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, turns) in enumerate(models.items()):
        colour = COLOURS[number % len(COLOURS)]
        at = [turn["turn"] for turn in turns]
        axes.plot(
            at, [turn["share"] for turn in turns], color=colour, linewidth=1.8,
            marker=MARKERS[number % len(MARKERS)], markersize=4.5, label=name,
        )  # fmt: skip
        band = ([turn["low"] for turn in turns], [turn["high"] for turn in turns])
        axes.fill_between(at, *band, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("turn")
    axes.set_ylabel("share that obeys")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    return save_picture(figure, path)
