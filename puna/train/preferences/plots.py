"""Pictures of a run on pairs: its course, and how far the model's certainty is to be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from puna.data.preferences import RATINGS
from puna.train.log import Record, read_log
from puna.train.plot import COLOURS, save_picture, smooth

_LINE = "#1f4e79"


def draw_preferences(run: Path) -> None:
    """The pictures of a run, and the last evaluation as agreement.json."""
    plot_preferences(run)
    asked = [record for record in read_log(run / "log.jsonl") if "held_out" in record]
    if asked:
        last = {key: value for key, value in asked[-1].items() if key.startswith("held_out")}
        text = json.dumps({"step": asked[-1]["step"]} | last, indent=2) + "\n"
        (run / "agreement.json").write_text(text)
        plot_agreement(last["held_out"], run / "agreement.png")


def plot_preferences(run: Path) -> Path:
    """Draws `run`/log.jsonl as `run`/loss.png: loss, and held-out accuracy with its interval."""
    from matplotlib.figure import Figure

    records = [record for record in read_log(run / "log.jsonl") if "loss" in record]
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    top.plot(steps, losses, color=_LINE, alpha=0.3, linewidth=0.8, label="training, each step")
    top.plot(steps, smooth(losses, 0.9), color=_LINE, linewidth=1.6, label="training, smoothed")
    asked = [record for record in records if "held_out" in record]
    at = [record["step"] for record in asked]
    style = {"color": COLOURS[0], "marker": "o", "markersize": 4.5}
    top.plot(at, [record["held_out_loss"] for record in asked], label="held out", **style)
    top.set_ylabel("loss (nats a pair)")
    top.legend(frameon=False)
    shares = [record["held_out"]["accuracy"] for record in asked]
    ends = [record["held_out"]["interval"] for record in asked]
    bars = [[s - low for s, (low, _) in zip(shares, ends, strict=True)],
            [high - s for s, (_, high) in zip(shares, ends, strict=True)]]  # fmt: skip
    if asked:
        bottom.errorbar(at, shares, yerr=bars, capsize=3, linewidth=1.3, **style)
    bottom.axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
    bottom.set_ylabel("held-out accuracy, 95 %")
    bottom.set_xlabel("optimizer step")
    _tidy(top, bottom)
    figure.suptitle(run.resolve().name, x=0.02, ha="left", fontweight="bold")
    return save_picture(figure, run / "loss.png")


def plot_agreement(found: Record, path: Path) -> Path:
    """Draws what `metrics.agreement` found: the calibration curve, its bins' sizes, and
    accuracy by rating."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    curve = found["calibration"]
    predicted = [each["predicted"] for each in curve]
    left.plot([0.5, 1], [0.5, 1], color="grey", linewidth=0.8, linestyle="--")
    left.plot(predicted, [each["observed"] for each in curve], "-o", color=_LINE, markersize=4.5)
    for x, each in zip(predicted, curve, strict=True):
        left.annotate(f"{each['pairs']:,}", (x, each["observed"]), fontsize=7,
                      xytext=(0, 6), textcoords="offset points", ha="center")  # fmt: skip
    left.set_xlabel("predicted: sigmoid of the difference of scores")
    left.set_ylabel("observed share of right choices")
    left.set_title(f"calibration error {found['calibration_error']:.3f}", fontsize=10)
    names = [name for name in (*RATINGS, "unrated") if name in found["by_rating"]]
    groups = [found["by_rating"][name] for name in names]
    shares = [each["accuracy"] for each in groups]
    bars = [[s - g["interval"][0] for s, g in zip(shares, groups, strict=True)],
            [g["interval"][1] - s for s, g in zip(shares, groups, strict=True)]]  # fmt: skip
    right.errorbar(shares, range(len(names)), xerr=bars, fmt="o", color=_LINE, capsize=3)
    labels = [f"{n.replace('_', ' ')}\n{g['pairs']:,}" for n, g in zip(names, groups, strict=True)]
    right.set_yticks(range(len(names)), labels)
    right.set_ylim(len(names) - 0.5, -0.5)
    right.axvline(0.5, color="grey", linewidth=0.8, linestyle="--")
    right.set_xlabel("accuracy, 95 %")
    right.set_title(f"all: {found['accuracy']:.1%} of {found['pairs']:,} pairs", fontsize=10)
    _tidy(left, right)
    return save_picture(figure, path)


def _tidy(*panels: Any) -> None:
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
