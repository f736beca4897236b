"""A run of PPO as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.train.log import Record, read_log
from puna.train.plot import COLOURS, save_picture

# Title of a panel, and its lines: key of a record, and what it is called.
_PANELS: dict[str, dict[str, str]] = {
    "reward": {"reward": "what counts", "helpfulness": "helpfulness", "safety": "safety"},
    "gold reward, not trained on": {"gold": "gold"},
    "KL divergence from the start, nats an answer": {"kl": ""},
    "entropy, nats a token": {"entropy": ""},
    "length of an answer, tokens": {"answer_tokens": ""},
}


def plot_ppo(run: Path) -> Path:
    """Draws `run`/log.jsonl as `run`/ppo.png: rewards of each iteration and on held-out prompts, KL
    divergence, entropy and length, over steps."""
    from matplotlib.figure import Figure

    records = read_log(run / "log.jsonl")
    # One of each iteration: the rest repeat what was sampled.
    firsts = [
        r for n, r in enumerate(records) if not n or r["iteration"] != records[n - 1]["iteration"]
    ]
    known = firsts[0].keys() - (set() if "safety" in firsts[0] else {"helpfulness"})
    panels = {title: lines for title, lines in _PANELS.items() if known & lines.keys()}
    figure = Figure(figsize=(8, 1.5 + 1.7 * len(panels)), layout="constrained")
    heights = [2.0, *[1.0] * (len(panels) - 1)]
    column = figure.subplots(
        len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for axes, (title, lines) in zip(column, panels.items(), strict=True):
        for number, (key, label) in enumerate(lines.items()):
            if key in known:
                _draw(axes, firsts, records, key, label, COLOURS[number])
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if any(lines.values()):
            axes.legend(frameon=False, fontsize=8)
    column[-1].set_xlabel("optimizer step")
    figure.suptitle(run.resolve().name, x=0.02, ha="left", fontweight="bold")
    return save_picture(figure, run / "ppo.png")


def _draw(
    axes: Any,
    firsts: Sequence[Record],
    records: Sequence[Record],
    key: str,
    label: str,
    colour: str,
) -> None:
    """A figure of each iteration, which is that of the policy before its first step; and on
    held-out prompts."""
    steps = [record["step"] - 1 for record in firsts]
    axes.plot(
        steps, [record[key] for record in firsts], color=colour, linewidth=1.5,
        marker="." if len(steps) < 40 else None, label=label,
    )  # fmt: skip
    held_out = [(0, r["start"][key]) for r in records if key in r.get("start", {})]
    held_out += [(r["step"], r[f"held_out_{key}"]) for r in records if f"held_out_{key}" in r]
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True), color=colour, linestyle="--", marker="o", markersize=4,
            markerfacecolor="white", linewidth=1, label=f"{label}, held out" if label else None,
        )  # fmt: skip
