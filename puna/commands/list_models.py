"""`puna list`: the models that Puna knows."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from puna.catalog import MODELS
from puna.commands.models import SHIPPED, resolve
from puna.commands.options import json_option
from puna.commands.render import human_count


@click.command(name="list")
@json_option
def list_models(as_json: bool) -> None:
    """Models that ship with Puna, and released ones that `puna info NAME` tells of."""
    rows = [
        (name, "ships with Puna", resolve(name).config.num_parameters, str(resolve(name).path.name))
        for name in SHIPPED
    ]
    rows += [
        (m.name, m.released or "never released", m.config.num_parameters, m.repository)
        for m in MODELS
    ]
    keys = ("name", "released", "parameters", "where")
    if as_json:
        click.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
        return
    table = Table(box=None, pad_edge=False)
    for key in keys:
        table.add_column(key, justify="right" if key == "parameters" else "left", no_wrap=True)
    for name, released, parameters, where in rows:
        table.add_row(name, released, human_count(parameters), where)
    Console(highlight=False).print(table)
