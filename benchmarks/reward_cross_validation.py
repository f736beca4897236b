"""Reward models trained on all folds of a file but one and asked about that one, in turn.

    python benchmarks/reward_cross_validation.py ../shared/data/preference/qa-feedback-dev.json

Pooled over the folds: accuracy with its 95 % interval (Wilson), by rating too. A fold is of whole
prompts: none is trained on and asked about. The learning rate is given, not tuned, so every fold
counts. Each fold's result is a line of --out, and is not made again if it is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from puna.data.pairs import encode_pairs
from puna.data.preference_mix import folds
from puna.data.preferences import Comparison, read_comparisons
from puna.train.log import read_log
from puna.train.loop import Settings
from puna.train.preferences.metrics import wilson
from puna.train.preferences.reward import RewardConfig, prepare, reward, warmup_steps
from puna.train.starting import open_start


def train_and_ask(
    trained: Sequence[Comparison], asked: Sequence[Comparison], options: argparse.Namespace
) -> dict[str, Any]:
    """What a model trained on some comparisons says of others (`preferences.metrics.agreement`)."""
    start = open_start(options.model)
    pairs, held_out = (
        encode_pairs(each, start.tokenizer(), max_tokens=options.context_length)[0]
        for each in (trained, asked)
    )
    steps = max(1, round(options.epochs * len(pairs) / options.batch_size))
    settings = Settings(
        steps=steps,
        learning_rate=options.learning_rate,
        warmup_steps=warmup_steps(steps),
        dtype=options.dtype,
        checkpoint_every=steps,
    )
    config = RewardConfig(
        dataclasses.replace(start.config, tied=True),
        settings,
        options.batch_size,
        options.micro_batch_size,
        options.seed,
        margin=options.margin,
        start=options.model,
    )

    def tell(record: dict[str, Any]) -> None:
        print(f"step {record['step']}/{steps}  loss {record['loss']:.4f}", file=sys.stderr)

    assert start.vocabulary is not None
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        prepare(run, config, pairs, held_out, start.vocabulary)
        if not reward(run, on_record=tell):
            sys.exit("stopped")
        found: dict[str, Any] = read_log(run / "log.jsonl")[-1]["held_out"]
    return found | {"trained": len(pairs)}


def pooled(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy over the pairs of all folds, by rating too."""
    ratings = {name for each in found for name in each["by_rating"]}
    groups = {"all": list(found)} | {
        name: [each["by_rating"][name] for each in found if name in each["by_rating"]]
        for name in sorted(ratings)
    }
    result = {}
    for name, parts in groups.items():
        total = sum(part["pairs"] for part in parts)
        right = sum(part["accuracy"] * part["pairs"] for part in parts)
        result[name] = {"pairs": total, "accuracy": right / total, "interval": wilson(right, total)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="cria")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="+", help="folds, by default all")
    parser.add_argument("--out", type=Path, help="results of folds, a line each")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--margin", default="none")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    comparisons, left_out = read_comparisons(options.data)
    parts = folds(comparisons, options.folds, options.seed)
    done: dict[int, dict[str, Any]] = {}
    if options.out is not None and options.out.is_file():
        done = {each["fold"]: each for each in map(json.loads, options.out.open())}
    wanted = range(options.folds) if options.only is None else options.only
    for number in wanted:
        if number not in done:
            others = [each for n, part in enumerate(parts) if n != number for each in part]
            found = train_and_ask(others, parts[number], options)
            done[number] = {"fold": number} | found
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(done[number]) + "\n")
        print(f"fold {number}: {done[number]['accuracy']:.1%}", file=sys.stderr)
    result = pooled([done[number] for number in wanted])
    print(json.dumps({"pooled": result, "left_out": dict(left_out)}, indent=2))


if __name__ == "__main__":
    main()
