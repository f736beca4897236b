"""`puna plan compare`: plans side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from puna.commands.options import json_option
from puna.commands.plan_shared import show_json
from puna.commands.render import human_bytes
from puna.plan.compare import Line, read_plan
from puna.plan.compare import compare as compare_plans

_LONG = 24  # characters of a text that is too long for a cell


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

    _show([path.stem for path in plans], lines)


def _show(names: list[str], lines: list[Line]) -> None:
    """A table with a heading for the fields of each part of the plans; below it, what is words."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    words = [line for line in lines if any(_is_long(value) for value in line.values)]
    heading = ""
    for line in (line for line in lines if line not in words):
        *parts, name = line.field.replace("_", " ").split(".")
        if heading != (heading := " ".join(parts)):
            table.add_row(heading, style="bold")
        cells = [
            _cell(line.field, value, ratio if number else None)
            for number, (value, ratio) in enumerate(zip(line.values, line.ratios, strict=True))
        ]
        table.add_row("  " * bool(parts) + name, *cells)
    console.print(table)
    for line in words:
        console.print(f"\n[bold]{line.field.replace('_', ' ').replace('.', ' ')}[/bold]")
        for name, value in zip(names, line.values, strict=True):
            console.print(f"{name}: {_cell(line.field, value, None)}", markup=False)


def _is_long(value: float | str | None) -> bool:
    return isinstance(value, str) and len(value) > _LONG


def _cell(field: str, value: float | str | None, ratio: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | bool):
        return str(value)
    if field.startswith("memory.") or field.endswith("_bytes"):
        text = human_bytes(value)
    else:
        whole = isinstance(value, int) or 1000 <= abs(value) < 1e15
        text = f"{value:,.0f}" if whole else f"{value:.4g}"
    return text if ratio is None else f"{text} ({ratio:.2f}x)"
