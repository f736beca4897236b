"""The help of a command with many options: under headings."""

from __future__ import annotations

from typing import Any

import click


class SectionedCommand(click.Command):
    """A command whose help has a heading above some of its options."""

    def __init__(self, *args: Any, headings: dict[str, str], **others: Any) -> None:
        """`headings`: by the name of the first parameter that stands below it."""
        super().__init__(*args, **others)
        self.headings = headings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes them, and after them those that click adds."""
        sections: dict[str, list[tuple[str, str]]] = {}
        title = "Options"
        for param in self.get_params(ctx):
            title = self.headings.get(param.name or "", title)
            if param not in self.params:
                title = "Other"
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(title, []).append(record)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)
