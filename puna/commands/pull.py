"""`puna pull`: downloads a model from a hub, after its licence was accepted."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from puna.commands.options import json_option
from puna.commands.progress import download_bar
from puna.commands.render import human_bytes
from puna.hub.cache import choose_one
from puna.hub.fetch import check_space, fetch, present_bytes
from puna.hub.licenses import accept, is_accepted, license_of
from puna.hub.names import HubName, parse
from puna.hub.remote import Listing, RemoteFile, endpoint_url, list_files
from puna.hub.select import SeveralModelsError, first_files


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--endpoint", metavar="URL", help="Another hub than HF_ENDPOINT or huggingface.co.")
@click.option("--accept-license", is_flag=True, help="Accept the licence; for scripts.")
@click.option("--dry-run", is_flag=True, help="Only list what would be downloaded.")
@json_option
def pull(
    model: str, endpoint: str | None, accept_license: bool, dry_run: bool, as_json: bool
) -> None:
    """Download MODEL: OWNER/REPOSITORY[@REVISION][:FILE], or a name that puna list has.

    Without FILE, all that one model needs: safetensors before .bin before .pth. FILE is one file
    of a repository that holds several models, or a pattern: 'TheBloke/Llama-2-7B-GGUF:*Q4_K_M*'.
    A broken or stopped download goes on where it was. Files go to the Hugging Face cache (HF_HOME),
    which transformers shares; a token comes from HF_TOKEN or hf auth login.
    """
    name = parse(model)
    url = endpoint_url(endpoint)
    listing, files = _choose(name, url)
    if dry_run:
        _show(listing, files, as_json)
        return
    to_come, paths = _missing(listing, files), [file.path for file in files]
    _ask_for_license(listing, accept_license)
    snapshot = _download(listing, files, url)
    path = snapshot / first_files(paths)[0] if len(first_files(paths)) == 1 else snapshot
    if as_json:
        result = _facts(listing, files) | {"path": str(path), "downloaded_bytes": to_come}
        click.echo(json.dumps(result))
        return
    size = human_bytes(sum(file.size for file in files))
    news = f"{human_bytes(to_come)} downloaded" if to_come else "all of it was here already"
    click.echo(f"{name} is in {path} ({size}, {news})", err=True)


def pull_model(name: HubName) -> None:
    """Downloads a model that a command needs, saying so on standard error."""
    url = endpoint_url(None)
    listing, files = _choose(name, url)
    _ask_for_license(listing, False)
    click.echo(
        f"{name} is not on this machine: downloading {human_bytes(_missing(listing, files))}",
        err=True,
    )
    _download(listing, files, url)


def _download(listing: Listing, files: tuple[RemoteFile, ...], endpoint: str) -> Path:
    """Fetches with a progress bar; gives the snapshot's folder."""
    check_space(listing, files)
    try:
        with download_bar("Downloading", sum(file.size for file in files)) as advance:
            return fetch(listing, files, endpoint, advance)
    except KeyboardInterrupt:
        click.echo("\nstopped; what came is kept: the same command goes on from there", err=True)
        raise


def _choose(name: HubName, endpoint: str) -> tuple[Listing, tuple[RemoteFile, ...]]:
    listing = list_files(name, endpoint)
    try:
        return listing, listing.chosen()
    except SeveralModelsError as error:
        sizes = {file.path: human_bytes(file.size) for file in listing.files}
        files = [f"{path} ({sizes[path]})" for path in error.files]
        raise ValueError(choose_one(name, error.files, files)) from None


def _missing(listing: Listing, files: tuple[RemoteFile, ...]) -> int:
    return sum(file.size - present_bytes(listing, file) for file in files)


def _ask_for_license(listing: Listing, accept_license: bool) -> None:
    """Has the licence accepted, once; ValueError if it is not."""
    license = license_of(listing.name.repository, listing.license)
    memory = Path(click.get_app_dir("puna")) / "licenses.json"
    if license is None or is_accepted(license, memory):
        return
    if not accept_license:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ValueError(
                f"{listing.name} comes under the {license.title} ({license.url}): read it, then "
                f"say so with puna pull {listing.name} --accept-license"
            )
        click.echo(f"{listing.name.repository} comes under the {license.title}", err=True)
        click.echo(f"{license.url}. In short:", err=True)
        for line in license.terms:
            click.echo(click.wrap_text(line, 78, "  - ", "    "), err=True)
        click.echo(click.wrap_text(license.notice, 78, "  ", "  "), err=True)
        if not click.confirm("Do you accept it?", err=True):
            raise ValueError("the licence was not accepted; nothing was downloaded")
    accept(license, memory)


def _facts(listing: Listing, files: tuple[RemoteFile, ...]) -> dict[str, object]:
    return {
        "repository": listing.name.repository,
        "revision": listing.name.revision,
        "commit": listing.commit,
        "license": listing.license or None,
        "bytes": sum(file.size for file in files),
        "files": [asdict(file) | {"present_bytes": present_bytes(listing, file)} for file in files],
    }


def _show(listing: Listing, files: tuple[RemoteFile, ...], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_facts(listing, files)))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for file in files:
        present = present_bytes(listing, file)
        note = "" if not present else f"{human_bytes(present)} here already"
        table.add_row(file.path, human_bytes(file.size), note)
    table.add_row("to download", human_bytes(_missing(listing, files)), "")
    Console(highlight=False, markup=False, soft_wrap=True).print(table)
