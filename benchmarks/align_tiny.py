"""The `tiny` alignment with several seeds: what each stage gives in true reward, side by side.

    python benchmarks/align_tiny.py SOURCES OUT [--seeds 0 1 2]

SOURCES has factbook.jsonl (or .zst) and tinystories-sample.txt; OUT gets a folder a seed, and what
is there of one is gone on with. Prints the mean and the range over the seeds of the gold score on
held-out tasks (greedy, and sampled at temperature 1), violations and false refusals, how many
dialogs still keep to their instruction, and the minutes that a seed took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from puna.data.text import records
from puna.recipes.tasks.task import gold, read_tasks

MODELS = {"base": "base/model", "V1, fine-tuning": "V1/sft", "V2, rejection sampling": "V2/sft",
          "V3, PPO": "V3/ppo"}  # fmt: skip
TURNS = (1, 6, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    for seed in options.seeds:
        command = [sys.executable, "-m", "puna", "align", "tiny", "--sources", options.sources,
                   "--out", folder(options.out, seed), "--seed", seed]  # fmt: skip
        subprocess.run([str(each) for each in command], check=True)
    runs = [folder(options.out, seed) for seed in options.seeds]
    print("| model | gold, greedy | gold, sampled | violations | false refusals |")
    print("|---|---|---|---|---|")
    for name, where in MODELS.items():
        found = [figures(run / where)["gold"] for run in runs]
        cells = [spread([each[how]["mean"] for each in found], "{:.3f}")
                 for how in ("greedy", "sampled")]  # fmt: skip
        cells += [
            spread([rate(each["greedy"], which) for each in found], "{:.1%}")
            for which in ("violations", "false refusals")
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| gold above the model before, 95 % over tasks | greedy | sampled |\n|---|---|---|")
    for (_, before), (name, after) in pairwise(MODELS.items()):
        cells = [above(runs, before, after, how) for how in ("greedy", "sampled")]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| obeys at turn | " + " | ".join(map(str, TURNS)) + " |")
    print("|---|" + "---|" * len(TURNS))
    for version in ("V1", "V2", "V3"):
        found = [figures(run / version / "obedience") for run in runs]
        cells = [spread([each.get(f"turn_{turn}", 0.0) for each in found], "{:.0%}")
                 for turn in TURNS]  # fmt: skip
        print(f"| {version} | {' | '.join(cells)} |")
    minutes = [sum(result(each)["seconds"] for each in stages(run)) / 60 for run in runs]
    print(f"\nminutes a seed: {spread(minutes, '{:.1f}')}")


def folder(out: Path, seed: int) -> Path:
    return out / f"seed{seed}"


def stages(run: Path) -> list[Path]:
    return [path.parent for path in run.glob("*/*/result.json")]


def result(stage: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((stage / "result.json").read_text())
    return values


def figures(stage: Path) -> dict[str, Any]:
    found: dict[str, Any] = result(stage)["figures"]
    return found


def above(runs: list[Path], before: str, after: str, how: str) -> str:
    """By how much the gold score of the same tasks rose, with its 95 % half interval, all seeds
    together."""
    differences = []
    for run in runs:
        tasks = read_tasks(Path(json.loads((run / "config.json").read_text())["data"]["held_out"]))
        old, new = (
            gold(tasks, [row[how] for row in records(run / stage / "answers.jsonl")])
            for stage in (before, after)
        )
        differences += [b - a for a, b in zip(old, new, strict=True)]
    error = stdev(differences) / len(differences) ** 0.5
    return f"{fmean(differences):+.4f} (+- {1.96 * error:.4f})"


def rate(gold: dict[str, Any], which: str) -> float:
    return next(float(row["rate"]) for row in gold["safety"] if row["name"] == which)


def spread(values: list[float], form: str) -> str:
    """Mean, and from where to where."""
    show: Callable[[float], str] = form.format
    return f"{show(sum(values) / len(values))} ({show(min(values))} to {show(max(values))})"


if __name__ == "__main__":
    main()
