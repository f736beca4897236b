"""`puna reward`: teaches a model which of two answers people prefer, and asks such models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.options import json_option
from puna.commands.pairs import (
    PairOptions,
    pair_facts,
    pair_options,
    read_from,
    show_run,
)
from puna.commands.progress import bar
from puna.commands.ranks import is_first, said_once
from puna.commands.train_options import TrainOptions, train_options
from puna.commands.train_run import train_run
from puna.data.preference_mix import MIXES
from puna.plan.layout import Layout

if TYPE_CHECKING:
    from puna.tokenizer import Vocabulary
    from puna.train.preferences.pair_data import PairData
    from puna.train.preferences.reward import RewardConfig

_BATCH = 512  # pairs; the paper's
_PIECE = 8  # pairs at once; *ours*


@click.command()
@pair_options
@click.option("--kind", type=click.Choice(list(MIXES)), default="helpfulness", show_default=True,
              help="safety: a second head tells whether an answer is safe.")  # fmt: skip
@click.option("--other", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Comparisons of another kind to draw from, as the paper mixes them: as many as "
              "of DATA for helpfulness, one in ten for safety; repeatable.")  # fmt: skip
@click.option("--margin", type=click.Choice(["none", "small", "large"]), default="small",
              show_default=True, help="How far apart scores are to be, by rating.")  # fmt: skip
@click.option("--safety-weight", type=float, default=1.0, show_default=True,
              help="Of the loss of the safety head.")  # fmt: skip
@click.option(
    "--evaluate",
    "asked",
    multiple=True,
    is_eager=True,
    metavar="MODEL",
    help="Train nothing: ask this reward model about each file of DATA; repeatable.",
)
@json_option
@train_options(batch_size=None, learning_rate=1e-5, items="Pairs", usual=_BATCH)
def reward(
    options: TrainOptions,
    pairs: PairOptions,
    kind: str,
    other: tuple[Path, ...],
    margin: str,
    safety_weight: float,
    asked: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a reward model on comparisons, with Llama 2's loss and schedule.

    DATA are files (.jsonl or .json) of pairs of answers of which one was preferred: what puna
    compare writes, TRL's, Anthropic's transcripts, QA-feedback, PandaLM.

    A model begins from --model, best one that chats, and has a scalar head instead of the next
    token's. The run's folder has besides loss.png agreement.json and agreement.png: accuracy on
    held-out pairs, by rating, and a calibration curve. A model of few million parameters needs a
    larger --learning-rate, such as 3e-4. --json is for --dry-run and --evaluate.
    """
    if asked:
        _evaluate(asked, pairs, options.device, as_json)
        return
    from puna.train.preferences.plots import draw_preferences
    from puna.train.preferences.reward import RewardConfig, prepare, warmup_steps
    from puna.train.preferences.reward import reward as train
    from puna.train.schedule import steps_for

    tell = f"puna reward {' '.join(map(str, pairs.data)) or 'DATA'}"
    run = train_run(options, RewardConfig, train, tell, draw=draw_preferences)
    if options.resume:
        run.resume()
        return
    with said_once():
        pairs.check()

    def resolved() -> tuple[RewardConfig, PairData, Vocabulary]:
        start, where, found = read_from(pairs, options.seed, kind=kind, other_paths=other)
        batch_size = pairs.batch_size(options, found, _BATCH, Layout.parse(run.parallel))
        steps = steps_for(pairs.epochs, len(found.trained), batch_size)
        settings = options.settings(steps, run.parallel)
        if options.warmup_steps is None:
            settings = replace(settings, warmup_steps=warmup_steps(steps))
        config = RewardConfig(
            replace(start.config, tied=True),
            settings,
            batch_size,
            options.piece(batch_size, run.parallel, usual=_PIECE),
            options.seed,
            kind=kind,
            margin=margin,
            safety_weight=safety_weight,
            start=where,
        )
        assert start.vocabulary is not None  # open_start saw to it
        return config, found, start.vocabulary

    def prepare_run() -> None:
        config, found, vocabulary = resolved()
        for line in found.lines():
            click.echo(f"note: {line}", err=True)
        prepare(options.out, config, found.trained, found.held_out, vocabulary)

    if not options.dry_run:
        run.start(prepare_run)
    elif is_first():
        config, found, _ = resolved()
        show_run(config, found, as_json, pair_facts(config, found) | {"margin": margin})


def _evaluate(asked: tuple[str, ...], pairs: PairOptions, device: str, as_json: bool) -> None:
    """Each model on each file: a table."""
    from rich.console import Console
    from rich.table import Table

    from puna.data.preferences import read_comparisons
    from puna.train.preferences.metrics import ask
    from puna.train.scoring import open_scorer

    pairs.check()
    scorers = {name: open_scorer(name, device=device) for name in asked}
    found: list[dict[str, Any]] = []
    for path in pairs.data:
        comparisons, skipped = read_comparisons(path, form=pairs.form)
        for name, scorer in scorers.items():
            with bar(f"{name}: {path.name}", total=len(comparisons)) as advance:
                result = ask(scorer, comparisons, on_pair=advance)
            result["left_out"] |= skipped
            found.append({"model": name, "data": str(path)} | result)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("model", "data", box=None, pad_edge=False, header_style="bold")
    for title in ("pairs", "accuracy", "95 %", "calibration error", "left out"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in found:
        error, left_out = f"{row['calibration_error']:.3f}", f"{sum(row['left_out'].values()):,}"
        table.add_row(row["model"], Path(row["data"]).name, *_shares(row), error, left_out)
        for name, group in row["by_rating"].items():
            if len(row["by_rating"]) > 1:
                table.add_row("", f"  {name.replace('_', ' ')}", *_shares(group))
    Console().print(table)


def _shares(group: dict[str, Any]) -> tuple[str, str, str]:
    low, high = group["interval"]
    return f"{group['pairs']:,}", f"{group['accuracy']:.1%}", f"{low:.1%} - {high:.1%}"
