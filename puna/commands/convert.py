"""`puna convert`: rewrites a model in another format, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from puna.chat import TEMPLATES
from puna.commands.models import opened_adapter, resolve
from puna.commands.options import lora_option
from puna.commands.progress import bar
from puna.formats import FORMATS, save_checkpoint
from puna.formats.adapters import merged
from puna.formats.checkpoint import Checkpoint
from puna.formats.imatrix import read_importance
from puna.kernels import native
from puna.quantize.mixes import FLOATS, NAMES

_WRITABLE = [row.name for row in FORMATS.values() if row.write is not None]


@click.command()
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_name",
    help=f"{', '.join(_WRITABLE)} (or hf). Not needed where DESTINATION ends in .gguf.",
)
@click.option(
    "--dtype",
    metavar="NAME",
    help=f"Storage of the matrices: {', '.join(NAMES)}. As in SOURCE if not given.",
)
@click.option("--pure", is_flag=True, help="Every matrix in the mix's own type, as llama.cpp's.")
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="Importance of each column, for the block types: see puna quantize.",
)
@lora_option
@click.option(
    "--zero-points",
    type=click.Choice(["v1", "v2"]),
    help="How a GPTQ SOURCE stores its zeros, where its files say it wrongly.",
)
@click.option("--num-shards", type=click.IntRange(min=1), help="Meta's files only.")
@click.option("--bits", type=click.Choice(["2", "3", "4", "8"]), help="GPTQ only; 4 if not given.")
@click.option("--group-size", type=int, help="GPTQ only; 128 if not given, -1 for whole rows.")
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
    format_name: str | None,
    dtype: str | None,
    pure: bool,
    imatrix: Path | None,
    adapters: tuple[str, ...],
    zero_points: str | None,
    num_shards: int | None,
    bits: str | None,
    group_size: int | None,
    tokenizer: Path | None,
    name: str | None,
    license_name: str | None,
    chat_template: str | None,
    overwrite: bool,
) -> None:
    """Rewrite SOURCE (a model in any format) as DESTINATION.

    DESTINATION appears only when it is whole. Memory holds one tensor at a time.
    """
    checkpoint = resolve(source, tokenizer, zero_points=zero_points)
    checkpoint = replace(
        checkpoint,
        name=name or checkpoint.name,
        license=license_name or checkpoint.license,
        chat_template=TEMPLATES[chat_template] if chat_template else checkpoint.chat_template,
    )
    for adapter in adapters:
        checkpoint = merged(checkpoint, opened_adapter(adapter))
    options = {
        "num_shards": num_shards,
        "bits": None if bits is None else int(bits),
        "group_size": group_size,
    }
    write(
        checkpoint,
        destination,
        format_name or _format_of(destination),
        label="Converting",
        dtype=dtype,
        pure=pure,
        importance=None if imatrix is None else read_importance(imatrix),
        overwrite=overwrite,
        **{key: value for key, value in options.items() if value is not None},
    )


def write(
    checkpoint: Checkpoint, destination: Path, format_name: str, *, label: str, **options: Any
) -> None:
    """Saves with a progress bar, and says on standard error what was lost and where it is."""
    if destination.exists() and destination.resolve() == checkpoint.path.resolve():
        raise ValueError(f"{destination} is the source itself; choose another name")
    kinds = {options.get("dtype"), *(tensor.dtype for tensor in checkpoint.tensors.values())}
    if kinds - {None, *FLOATS} and not native.available():
        click.echo(
            "note: Puna's native code is not compiled here, so quantizing takes many times longer; "
            "install g++ or clang++, then Puna again",
            err=True,
        )
    with bar(label, total=len(checkpoint.tensors)) as advance:
        notes = save_checkpoint(
            checkpoint, destination, format_name, on_tensor=lambda name: advance(), **options
        )
    for note in (*checkpoint.notes, *notes):
        click.echo(f"note: {note}", err=True)
    click.echo(f"wrote {destination}", err=True)


def _format_of(destination: Path) -> str:
    if destination.suffix == ".gguf":
        return "gguf"
    raise ValueError(f"say what {destination} shall be: --format {', '.join(_WRITABLE)}")
