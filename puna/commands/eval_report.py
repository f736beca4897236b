"""`puna eval report`: evaluations as a page, beside what others have scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from puna.commands.options import json_option


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the report; needed for several runs.  [default: the run's]",
)
@json_option
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Show evaluations beside the leaderboard's and the Llama 2 paper's values.

    RUN is the folder of an evaluation; several stand side by side. Writes report.html, report.md,
    report.json and plots.
    """
    if out is None and len(runs) > 1:
        raise ValueError("several runs need --out, the folder of their report")
    values = written_report(runs, out or runs[0])
    if as_json:
        click.echo(json.dumps(values))


def written_report(runs: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Writes the report of `runs` into `folder`, and says so; returns it for programs."""
    from puna.evaluate.report.collect import as_json
    from puna.evaluate.report.files import write_report

    report = write_report(runs, folder)
    click.echo(f"report: {folder / 'report.html'}", err=True)
    return as_json(report)
