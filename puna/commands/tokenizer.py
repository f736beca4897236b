"""`puna tokenizer`: train one, or see what one does to a text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import click

from puna.commands.models import named_vocabulary
from puna.commands.progress import bar
from puna.data.text import documents
from puna.formats.files import atomic_file
from puna.tokenizer import Tokenizer
from puna.tokenizer.sentencepiece_model import write_model


@click.group()
def tokenizer() -> None:
    """Train a tokenizer, or try one."""


@tokenizer.command()
@click.argument("texts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("tokenizer.model"),
              show_default=True, help="File to write.")  # fmt: skip
@click.option("--vocab-size", type=int, default=32000, show_default=True)
@click.option("--separator", help="Line that parts documents in a .txt file.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
def train(
    texts: tuple[Path, ...], out: Path, vocab_size: int, separator: str | None, overwrite: bool
) -> None:
    """Learn a Llama tokenizer from TEXTS (.txt, .jsonl, either also as .zst).

    Byte-pair encoding, every digit its own token, bytes for what is unknown.
    """
    from puna.tokenizer.train import train as train_vocabulary

    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already; remove it or give --overwrite")
    with bar("Reading", total=None) as advance:

        def read() -> Iterator[str]:
            for text in itertools.chain.from_iterable(
                documents(path, separator=separator) for path in texts
            ):
                advance()
                yield text

        vocabulary = train_vocabulary(read(), vocab_size=vocab_size)
    with atomic_file(out, overwrite=overwrite) as file:
        file.write(write_model(vocabulary))
    click.echo(f"wrote {out}: {len(vocabulary):,} pieces", err=True)


@tokenizer.command()
@click.argument("text")
@click.option("--tokenizer", "source", default="cria", show_default=True,
              help="Tokenizer file, model file or folder, or a shipped model.")  # fmt: skip
@click.option("--bos", is_flag=True, help="Begin with the BOS id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def encode(text: str, source: str, bos: bool, as_json: bool) -> None:
    """Show the ids of TEXT and the pieces they stand for."""
    vocabulary = named_vocabulary(source)
    ids = Tokenizer(vocabulary).encode(text, bos=bos)
    pieces = [vocabulary.pieces[token] for token in ids]
    if as_json:
        click.echo(json.dumps({"ids": ids, "pieces": pieces}, ensure_ascii=False))
    else:
        for token, piece in zip(ids, pieces, strict=True):
            click.echo(f"{token:>7}  {piece}")
