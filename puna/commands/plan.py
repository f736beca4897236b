"""`puna plan`: one table of subcommands, each imported only when it is called."""

from __future__ import annotations

import click

from puna.commands.lazy import Entry, LazyGroup

SUBCOMMANDS: dict[str, Entry] = {
    "train": Entry(
        "puna.commands.plan_train:train", "What pretraining takes, and the best layout."
    ),
    "simulate": Entry(
        "puna.commands.plan_simulate:simulate", "A run with slow ranks and failures."
    ),
    "align": Entry(
        "puna.commands.plan_align:align", "What SFT, reward models, sampling, PPO take."
    ),
    "serve": Entry(
        "puna.commands.plan_serve:serve", "What serving takes: memory, tokens/s, users."
    ),
    "fit": Entry("puna.commands.plan_fit:fit", "What a machine can run, train or serve."),
    "calibrate": Entry(
        "puna.commands.plan_calibrate:calibrate", "Measure this machine, and keep it."
    ),
    "compare": Entry("puna.commands.plan_compare:compare", "Plans side by side."),
}


@click.command(cls=LazyGroup, table=SUBCOMMANDS)
def plan() -> None:
    """What it takes to train, tune and serve, before paying for it."""
