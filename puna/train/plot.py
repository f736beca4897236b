"""A run's log as a picture."""

from __future__ import annotations

from pathlib import Path

from puna.train.log import read_log


def plot_loss(run: Path) -> Path:
    """Draws `run`/log.jsonl as `run`/loss.png: loss of each step, smoothed, and held-out loss."""
    from matplotlib.figure import Figure

    records = read_log(run / "log.jsonl")
    steps = [record["step"] for record in records]
    losses = [record["loss"] for record in records]
    held_out = [(r["step"], r["held_out_loss"]) for r in records if "held_out_loss" in r]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="each step")
    axes.plot(steps, smooth(losses), color="tab:blue", linewidth=1.6, label="smoothed")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="held out")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_title(f"{run.name}: {records[-1]['tokens']:,} tokens" if records else run.name)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = run / "loss.png"
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
