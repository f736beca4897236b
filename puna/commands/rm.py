"""`puna rm`: deletes a pulled model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from puna.commands.cache import cache_folder
from puna.commands.options import json_option
from puna.commands.render import human_bytes
from puna.engine.cpu.tile_cache import TileCache
from puna.hub.cache import Snapshot, remove, snapshots, stopped
from puna.hub.locate import SHIPPED
from puna.hub.names import HubName, parse
from puna.hub.select import is_weight, matching_files


@click.command()
@click.argument("model")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def rm(model: str, yes: bool, as_json: bool) -> None:
    """Delete a pulled MODEL: OWNER/REPOSITORY[@REVISION][:FILE].

    Without REVISION, every revision of it that is here; with FILE (or a pattern), only that. What
    other revisions share stays.
    """
    if model in SHIPPED:
        raise ValueError(f"{model} ships with Puna and cannot be removed")
    if Path(model).exists():
        raise ValueError(f"{model} is a file or folder of your own: delete it yourself")
    name = parse(model)
    doomed = _files(name, "@" in model)
    contents = {path.resolve() for path in doomed}  # revisions share what is the same
    size = human_bytes(
        sum(path.stat().st_size for path in contents) or stopped().get(name.repository, 0)
    )
    if not yes:
        if not sys.stdin.isatty():
            raise ValueError(f"say --yes to delete {model} ({size})")
        if not click.confirm(f"Delete {model} ({size})?", err=True):
            raise ValueError("nothing was deleted")
    freed = remove(doomed, name.repository)
    if (folder := cache_folder()) is not None:
        freed += TileCache(folder).prune()
    if as_json:
        click.echo(json.dumps({"files": len(doomed), "freed_bytes": freed}))
    else:
        click.echo(f"deleted {model}: {human_bytes(freed)} freed", err=True)


def _files(name: HubName, one_revision: bool) -> list[Path]:
    """The snapshot files that `name` means; ValueError says what there is instead."""
    here = snapshots(name.repository)
    if not here and name.repository in stopped():
        return []
    if not here:
        raise ValueError(f"{name.repository} is not on this machine; puna list shows what is")
    chosen = [s for s in here if not one_revision or name.revision in (*s.revisions, s.commit)]
    if not chosen:
        there = ", ".join(revision for s in here for revision in (s.revisions or (s.commit,)))
        raise ValueError(f"{name.repository}@{name.revision} is not here; there is {there}")
    files = [path for snapshot in chosen for path in _doomed(snapshot, name.file or "*")]
    if not files:
        there = ", ".join(sorted({file for s in chosen for file in s.names}))
        raise ValueError(f"{name.repository} has no file '{name.file}' here; it has {there}")
    return files


def _doomed(snapshot: Snapshot, pattern: str) -> list[Path]:
    """The files that match; all of them where no weights would be left."""
    names = snapshot.names
    chosen = matching_files(names, pattern)
    weights_left = any(is_weight(name) for name in names if name not in chosen)
    return [snapshot.path / name for name in (chosen if weights_left or not chosen else names)]
