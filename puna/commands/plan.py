"""`puna plan`: one table of subcommands, each imported only when it is called."""

from __future__ import annotations

import importlib

import click

# name -> where it is (`module:function`), and its line in the help.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "train": ("puna.commands.plan_train:train", "What pretraining takes, and the best layout."),
    "simulate": ("puna.commands.plan_simulate:simulate", "A run with slow ranks and failures."),
    "align": ("puna.commands.plan_align:align", "What SFT, reward models, sampling, PPO take."),
    "serve": ("puna.commands.plan_serve:serve", "What serving takes: memory, tokens/s, users."),
    "fit": ("puna.commands.plan_fit:fit", "What a machine can run, train or serve."),
    "calibrate": ("puna.commands.plan_calibrate:calibrate", "Measure this machine, and keep it."),
    "compare": ("puna.commands.plan_compare:compare", "Plans side by side."),
}


class _Table(click.Group):
    """Reads the table; imports a subcommand when it is used, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module, _, function = SUBCOMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in SUBCOMMANDS.items()])


@click.command(cls=_Table)
def plan() -> None:
    """What it takes to train, tune and serve, before paying for it."""
