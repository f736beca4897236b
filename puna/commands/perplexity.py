"""`puna perplexity`: how well models predict a text, and what a changed one lost."""

from __future__ import annotations

from pathlib import Path

import click

from puna.commands.measure import measure, show
from puna.commands.models import resolve
from puna.commands.options import Scope, compute_options, json_option, text_options


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@text_options
@click.option(
    "--against",
    metavar="MODEL",
    help="The original, to which each MODEL is compared: divergence and top-1 agreement.",
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Tokenizer file for all models.")
@compute_options
@json_option
def perplexity(
    models: tuple[str, ...],
    scope: Scope,
    against: str | None,
    tokenizer: Path | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Perplexity of each MODEL on a text, counted as llama.cpp counts it.

    The text is cut into chunks of --context tokens, each begins with BOS, and the second half of
    its predictions counts. With --stride the windows overlap and every token counts once.
    """
    original = None if against is None else (against, resolve(against, tokenizer))
    opened = [(model, resolve(model, tokenizer)) for model in models]
    show(measure(opened, original, scope, device, dtype), as_json=as_json)
