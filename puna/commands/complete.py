"""`puna complete`: continues a text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from puna.commands.models import load_runner, resolve
from puna.commands.options import json_option, model_options, sampling_options
from puna.engine.params import SamplingParams


@click.command()
@click.option(
    "--prompt", "-p", default="Once upon a time", show_default=True,
    help="The text to continue; '-' reads it from standard input.",
)  # fmt: skip
@model_options
@sampling_options
@click.option("--echo/--no-echo", default=True, show_default=True, help="Print the prompt first.")
@json_option
def complete(
    prompt: str,
    model: str,
    tokenizer: Path | None,
    device: str,
    dtype: str,
    sampling: SamplingParams,
    max_tokens: int,
    stop: tuple[str, ...],
    echo: bool,
    as_json: bool,
) -> None:
    """Continue a text, printing it as it comes."""
    checkpoint = resolve(model, tokenizer)
    encoder = checkpoint.tokenizer()
    if prompt == "-":
        prompt = _standard_input()
    ids = encoder.encode(prompt, bos=True)

    from puna.engine.generate import Completion

    completion = Completion(
        load_runner(checkpoint, device, dtype),
        encoder,
        ids,
        max_tokens,
        sampling,
        stop,
        # A word that follows a prompt keeps its space; the first of all has none.
        strip_space=not prompt,
    )
    if as_json:
        for _ in completion:
            pass
        result = {
            "prompt": prompt,
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "prompt_tokens": len(ids),
            "completion_tokens": len(completion.ids),
        }
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    for number, piece in enumerate(completion):
        if number == 0 and echo:
            click.echo(prompt, nl=False)
        click.echo(piece, nl=False)
    click.echo()


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt is not UTF-8 (byte {error.start})") from None
