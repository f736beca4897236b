"""`puna dpo`: tunes a model on which of two answers people prefer, without a reward model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from puna.commands.options import json_option
from puna.commands.pairs import PairOptions, pair_facts, pair_options, read_from, show_run
from puna.commands.progress import bar
from puna.commands.ranks import is_first, said_once
from puna.commands.train_options import TrainOptions, train_options
from puna.commands.train_run import train_run
from puna.plan.layout import Layout

if TYPE_CHECKING:
    from puna.tokenizer import Vocabulary
    from puna.train.preferences.dpo import DPOConfig
    from puna.train.preferences.pair_data import PairData

_BATCH = 64  # pairs; the paper's
_PIECE = 8  # pairs at once; *ours*


@click.command()
@pair_options
@click.option("--beta", type=float, default=0.1, show_default=True,
              help="How much the distance from the model that it begins from counts.")  # fmt: skip
@json_option
@train_options(batch_size=None, learning_rate=1e-6, items="Pairs", usual=_BATCH)
def dpo(options: TrainOptions, pairs: PairOptions, beta: float, as_json: bool) -> None:
    """Tune a model on comparisons by direct preference optimization.

    DATA are files as of puna reward. Before it trains, the model to begin from says how likely each
    answer is; that is kept with the run, whose folder is like that of puna reward. --json is for
    --dry-run.
    """
    from puna.train.preferences.dpo import DPOConfig, load_reference, with_reference
    from puna.train.preferences.dpo import dpo as train
    from puna.train.preferences.plots import draw_preferences
    from puna.train.preferences.reward import prepare
    from puna.train.schedule import steps_for

    run = train_run(options, DPOConfig, train, "puna chat", draw=draw_preferences)
    if options.resume:
        run.resume()
        return
    with said_once():
        pairs.check()

    def resolved() -> tuple[DPOConfig, PairData, Vocabulary]:
        start, where, found = read_from(pairs, options.seed)
        start.check_speaks()
        batch_size = pairs.batch_size(options, found, _BATCH, Layout.parse(run.parallel))
        steps = steps_for(pairs.epochs, len(found.trained), batch_size)
        config = DPOConfig(
            start.config,
            options.settings(steps, run.parallel),
            batch_size,
            options.piece(batch_size, run.parallel, usual=_PIECE),
            options.seed,
            beta=beta,
            start=where,
        )
        assert start.vocabulary is not None  # open_start saw to it
        return config, found, start.vocabulary

    def prepare_run() -> None:
        config, found, vocabulary = resolved()
        for line in found.lines():
            click.echo(f"note: {line}", err=True)
        network = load_reference(config)
        total = len(found.trained) + len(found.held_out)
        with bar("Asking the reference", total=total) as advance:
            trained, held_out = (
                with_reference(
                    part,
                    network,
                    dtype=config.settings.dtype,
                    micro_batch_size=config.micro_batch_size,
                    on_pair=advance,
                )
                for part in (found.trained, found.held_out)
            )
        found = replace(found, trained=trained, held_out=held_out)
        prepare(options.out, config, found.trained, found.held_out, vocabulary)

    if not options.dry_run:
        run.start(prepare_run)
    elif is_first():
        config, found, _ = resolved()
        show_run(config, found, as_json, pair_facts(config, found) | {"beta": f"{beta:g}"})
