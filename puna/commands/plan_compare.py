"""`puna plan compare`: plans side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from puna.commands.options import json_option
from puna.commands.plan_shared import show_json
from puna.plan.compare import compare as compare_plans
from puna.plan.compare import read_plan


@click.command()
@click.argument("plans", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--all", "all_fields", is_flag=True, help="Also what is the same in all.")
@json_option
def compare(plans: tuple[Path, ...], all_fields: bool, as_json: bool) -> None:
    """Show where PLANS differ: files that puna plan ... --json wrote, of one kind.

    A number's ratio to the first plan's stands behind it.
    """
    lines = compare_plans([read_plan(path) for path in plans], all_fields=all_fields)
    if as_json:
        names = [str(path) for path in plans]
        rows = [asdict(line) | {"ratios": line.ratios} for line in lines]
        show_json({"kind": "comparison", "plans": names, "lines": rows})
        return
    if not lines:
        click.echo("the plans are the same")
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    for path in plans:
        table.add_column(path.stem, justify="right", overflow="fold")
    for line in lines:
        cells = [
            _cell(value, ratio if number else None)
            for number, (value, ratio) in enumerate(zip(line.values, line.ratios, strict=True))
        ]
        table.add_row(line.field.replace("_", " "), *cells)
    Console(highlight=False).print(table)


def _cell(value: float | str | None, ratio: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | bool):
        return str(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return text if ratio is None else f"{text} ({ratio:.2f}x)"
