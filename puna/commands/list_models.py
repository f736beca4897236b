"""`puna list`: the models on this machine, and those that Puna knows of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table

from puna.catalog import MODELS
from puna.commands.models import resolve
from puna.commands.options import json_option
from puna.commands.render import human_bytes, human_count
from puna.formats import open_checkpoint
from puna.formats.checkpoint import Checkpoint
from puna.formats.errors import printable
from puna.hub.cache import Snapshot, snapshots, stopped
from puna.hub.locate import SHIPPED
from puna.hub.names import MAIN, HubName

_HERE = ("name", "format", "parameters", "bytes", "since", "path")
_KNOWN = ("name", "released", "parameters", "repository")


@click.command(name="list")
@json_option
def list_models(as_json: bool) -> None:
    """Models that ship with Puna, those that were pulled, and released ones to pull.

    Of what lies in the Hugging Face cache, what Puna cannot open is left out.
    """
    here = [_row(name, resolve(name, download=False), "ships with Puna") for name in SHIPPED]
    here += [row for snapshot in snapshots() for row in _pulled(snapshot)]
    partial = stopped()
    known = [
        (m.name, m.released or "never released", m.config.num_parameters, m.repository)
        for m in MODELS
    ]
    if as_json:
        rows: list[dict[str, Any]] = [dict(zip(_HERE, row, strict=True)) for row in here]
        rows += [{"name": name, "partial_bytes": size} for name, size in partial.items()]
        rows += [dict(zip(_KNOWN, row, strict=True)) for row in known]
        click.echo(json.dumps(rows))
        return
    _table("On this machine", _HERE[:-1], [row[:-1] for row in here])
    for name, size in partial.items():
        click.echo(f"{name}: stopped at {human_bytes(size)}; puna pull goes on, puna rm deletes it")
    click.echo()
    _table("Known (puna info NAME, puna pull NAME)", _KNOWN, known)


def _pulled(snapshot: Snapshot) -> Iterator[tuple[Any, ...]]:
    revision = snapshot.revisions[0] if snapshot.revisions else snapshot.commit
    revision = MAIN if MAIN in snapshot.revisions else revision
    for file, path in snapshot.models().items():
        try:
            checkpoint = open_checkpoint(path)
        except ValueError:
            continue  # another program's model, no Llama
        since = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
        yield _row(str(HubName(snapshot.repository, revision, file)), checkpoint, since)


def _row(name: str, checkpoint: Checkpoint, since: str) -> tuple[Any, ...]:
    path = str(checkpoint.path)
    size = checkpoint.num_bytes
    return name, checkpoint.format, checkpoint.config.num_parameters, size, since, path


_NEVER_WRAPS = 1000  # columns, for programs that read lines
_SHOWN = {"parameters": human_count, "bytes": human_bytes}


def _table(title: str, keys: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _NEVER_WRAPS
    table = Table(box=None, pad_edge=False)
    for key in keys:
        justify: Literal["left", "right"] = "right" if key in _SHOWN else "left"
        table.add_column(key, justify=justify, no_wrap=key != "name", overflow="fold")
    for row in rows:
        table.add_row(
            *(_SHOWN[key](cell) if key in _SHOWN else printable(cell)
              for key, cell in zip(keys, row, strict=True))
        )  # fmt: skip
    click.secho(title, bold=True)
    console.print(table)
