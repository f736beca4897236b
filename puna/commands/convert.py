"""`puna convert`: rewrites a model in another format, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from puna.chat import TEMPLATES
from puna.commands.models import resolve
from puna.commands.progress import bar
from puna.formats import FORMATS, save_checkpoint
from puna.quantize.storage import STORAGE

_WRITABLE = [row.name for row in FORMATS.values() if row.write is not None]


@click.command()
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--format", "format_name", required=True, help=f"{', '.join(_WRITABLE)} (or hf).")
@click.option(
    "--dtype", type=click.Choice(list(STORAGE)), help="Storage of the matrices; as in SOURCE."
)
@click.option("--num-shards", type=click.IntRange(min=1), default=1, help="Meta's files only.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Tokenizer file to go with it.")
@click.option("--name", help="Name that the file carries.")
@click.option("--license", "license_name", help="Licence that the file carries.")
@click.option(
    "--chat-template", type=click.Choice(list(TEMPLATES)), help="Mark it as a chat model."
)
@click.option("--overwrite", is_flag=True, help="Replace DESTINATION if it exists.")
def convert(
    source: str,
    destination: Path,
    format_name: str,
    dtype: str | None,
    num_shards: int,
    tokenizer: Path | None,
    name: str | None,
    license_name: str | None,
    chat_template: str | None,
    overwrite: bool,
) -> None:
    """Rewrite SOURCE (a model in any format) as DESTINATION.

    DESTINATION appears only when it is whole. Memory holds one tensor at a time.
    """
    checkpoint = resolve(source, tokenizer)
    checkpoint = replace(
        checkpoint,
        name=name or checkpoint.name,
        license=license_name or checkpoint.license,
        chat_template=TEMPLATES[chat_template] if chat_template else checkpoint.chat_template,
    )
    if destination.exists() and destination.resolve() == checkpoint.path.resolve():
        raise ValueError(f"{destination} is the source itself; choose another name")
    if num_shards != 1 and format_name != "meta":
        raise ValueError(f"--num-shards is for Meta's files, not {format_name}")
    options = {"num_shards": num_shards} if num_shards != 1 else {}
    with bar("Converting", total=len(checkpoint.tensors)) as advance:
        notes = save_checkpoint(
            checkpoint,
            destination,
            format_name,
            dtype=dtype,
            overwrite=overwrite,
            on_tensor=lambda name: advance(),
            **options,
        )
    for note in (*checkpoint.notes, *notes):
        click.echo(f"note: {note}", err=True)
    click.echo(f"wrote {destination}", err=True)
