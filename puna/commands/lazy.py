"""Groups whose commands are rows of a table, each imported only when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click


class Entry(NamedTuple):
    """A command: where it is (`module:function`), its line in the help, its section there."""

    target: str
    help: str
    group: str = "Commands"


class LazyGroup(click.Group):
    """Reads `table`, by name; imports a command when it is used, not to list it."""

    def __init__(self, *args: Any, table: Mapping[str, Entry], **options: Any) -> None:
        super().__init__(*args, **options)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, function = self.table[cmd_name].target.partition(":")
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in dict.fromkeys(entry.group for entry in self.table.values()):
            with formatter.section(group):
                rows = [(n, entry.help) for n, entry in self.table.items() if entry.group == group]
                formatter.write_dl(rows)
