"""`puna eval compare`: is one of two models better, question by question."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from puna.commands.options import json_option
from puna.formats.errors import printable

if TYPE_CHECKING:
    from puna.evaluate.comparison import Example, RunComparison

_TEXT = 160  # characters of an example that are shown


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--examples", type=click.IntRange(0, 3), default=1, show_default=True, metavar="N",
    help="Questions that are shown of each task, higher and lower in B.",
)  # fmt: skip
@json_option
def compare(a: Path, b: Path, examples: int, as_json: bool) -> None:
    """Compare evaluation B with A on the questions that both asked.

    Figures are in per cent. Right and wrong are judged by McNemar's exact test, other figures by
    Student's paired test, with the 95 % interval of the difference; "up/down" counts questions
    whose figure is higher and lower in B (of toxic answers and false refusals, lower is better),
    "p, all" is corrected for the number of tasks (Holm). Runs that asked other questions or shots
    are refused.
    """
    from puna.evaluate.comparison import compare_runs

    found = compare_runs(a, b)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        _show(found, examples)


def _show(found: RunComparison, examples: int) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", overflow="fold")
    for title in ("n", "A", "B", "B - A", "95 %", "up/down", "p", "p, all"):
        table.add_column(title, justify="right", no_wrap=True)
    for task in found.tasks:
        result = task.result
        table.add_row(
            escape(printable(task.title)),
            f"{result.count:,}",
            f"{100 * result.a:.1f}",
            f"{100 * result.b:.1f}",
            f"{100 * result.difference:+.1f}",
            f"{100 * result.low:+.1f} to {100 * result.high:+.1f}",
            f"{result.up}/{result.down}",
            _p(result.p),
            _p(task.p_holm),
        )
    console.print(printable(f"A: {found.a}, B: {found.b}"), markup=False)
    console.print(table)
    for task in found.tasks:
        if task.left_out:
            click.echo(
                printable(f"{task.title}: {task.left_out} questions have no figure in one run"),
                err=True,
            )
        for higher in (True, False):
            of_kind = [each for each in task.examples if (each.b > each.a) is higher]
            for example in of_kind[:examples]:
                _show_example(console, task.title, example)
    for name, tasks in (("A", found.only_a), ("B", found.only_b)):
        if tasks:
            click.echo(printable(f"only in {name}: {', '.join(tasks)}"), err=True)


def _show_example(console: Console, title: str, example: Example) -> None:
    """A question in a few lines; its text is anyone's, so nothing of it is markup."""
    where = f"{title}, {example.group}" if example.group else title
    lines = [
        f"\n{printable(f'{where}, question {example.id}')}: {_short(example.question)}",
        f"  right: {_short(example.answer)}",
        f"  A ({example.a:.3g}): {_short(example.given_a)}",
        f"  B ({example.b:.3g}): {_short(example.given_b)}",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _short(text: str) -> str:
    line = " ".join(text.split())
    shown = line if len(line) <= _TEXT else "… " + line[-_TEXT:]
    return printable(shown)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else f"{value:.0e}"
