"""`puna cache`: what packed weights of large models take, and deleting them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from puna.commands.options import json_option

VARIABLE = "PUNA_CACHE"


def cache_folder() -> Path | None:
    """Where packed weights are kept: $PUNA_CACHE, else the user's cache.

    None if that is "off", or nobody's home.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return None if chosen == "off" else Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    return base / "puna" if base.is_absolute() else None


@click.command()
@click.option("--clear", is_flag=True, help="Delete all; the next start packs again.")
@json_option
def cache(clear: bool, as_json: bool) -> None:
    """Show, or delete, what is kept so that large models start at once.

    The first start with a large model packs its weights and keeps them in the user's cache folder,
    the next ones use them as they are. They take a quarter of the free disk at most; what was not
    used for longest is deleted first. PUNA_CACHE moves the folder, PUNA_CACHE=off keeps nothing.
    """
    from puna.commands.render import human_bytes
    from puna.engine.cpu.tile_cache import TileCache

    folder = cache_folder()
    if folder is None:
        raise ValueError(f"nothing is kept; {VARIABLE} may name a folder")
    kept = TileCache(folder)
    if clear:
        freed = kept.clear()
        click.echo(json.dumps({"freed_bytes": freed}) if as_json else f"{human_bytes(freed)} freed")
        return
    files = kept.files()
    if as_json:
        rows = [asdict(file) | {"path": str(file.path)} for file in files]
        click.echo(json.dumps({"folder": str(folder), "files": rows}))
        return
    for file in files:
        used = datetime.fromtimestamp(file.used / 1e9, UTC).date().isoformat()
        click.echo(f"{human_bytes(file.num_bytes):>9}  {used}  {file.model or '(damaged)'}")
    total = human_bytes(sum(file.num_bytes for file in files))
    click.echo(f"{total:>9}  in {folder}; puna cache --clear deletes it")
