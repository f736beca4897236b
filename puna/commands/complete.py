"""`puna complete`: continues a text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.models import load, named_adapters, resolve
from puna.commands.options import (
    draft_option,
    json_option,
    lora_option,
    model_options,
    sampling_options,
    tensor_parallel_option,
)
from puna.engine.params import SamplingParams

if TYPE_CHECKING:
    from puna.engine.output import RequestOutput


@click.command()
@click.option(
    "--prompt", "-p", default="Once upon a time", show_default=True,
    help="The text to continue; '-' reads it from standard input.",
)  # fmt: skip
@model_options()
@sampling_options
@draft_option
@lora_option
@tensor_parallel_option
@click.option("--echo/--no-echo", default=True, show_default=True, help="Print the prompt first.")
@json_option
def complete(
    prompt: str,
    model: str,
    tokenizer: Path | None,
    device: str,
    dtype: str,
    kv_dtype: str,
    sampling: SamplingParams,
    draft: str | None,
    adapters: tuple[str, ...],
    tensor_parallel: bool,
    echo: bool,
    as_json: bool,
) -> None:
    """Continue a text, printing it as it comes."""
    checkpoint = resolve(model, tokenizer)
    if prompt == "-":
        prompt = _standard_input()
    loras = named_adapters(adapters)
    adapter = next(iter(loras), None)
    llm = load(
        checkpoint,
        device=device,
        dtype=dtype,
        kv_dtype=kv_dtype,
        draft=draft,
        adapters=loras,
        tensor_parallel=tensor_parallel,
    )
    if as_json:
        (result,) = llm.generate(prompt, sampling, adapter=adapter)
        click.echo(json.dumps(_as_json(result), ensure_ascii=False))
        return
    for number, delta in enumerate(llm.stream(prompt, sampling, adapter=adapter)):
        if number == 0 and echo:
            click.echo(prompt, nl=False)
        click.echo(delta.text, nl=False)
    click.echo()


def _as_json(result: RequestOutput) -> dict[str, Any]:
    output = result.outputs[0]
    return {
        "prompt": result.prompt,
        "text": output.text,
        "finish_reason": output.finish_reason,
        "prompt_tokens": len(result.prompt_token_ids),
        "completion_tokens": len(output.token_ids),
    }


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt is not UTF-8 (byte {error.start})") from None
