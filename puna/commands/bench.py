"""`puna bench`: how fast a model runs here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from puna.commands.cache import cache_folder
from puna.commands.models import resolve
from puna.commands.options import json_option, model_options


@click.command()
@model_options()
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, default=(1, 8),
    show_default=True, help="Sequences at once; repeatable.",
)  # fmt: skip
@click.option(
    "--context", "contexts", type=click.IntRange(min=0), multiple=True, default=(64,),
    show_default=True, help="Tokens before those that are decoded; repeatable.",
)  # fmt: skip
@click.option(
    "--prompt", type=click.IntRange(min=1), default=256, show_default=True,
    help="Tokens of the prompt that is read.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True,
    help="Bursts, of which the median counts.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads.  [default: one for each core]"
)
@json_option
def bench(
    model: str,
    tokenizer: Path | None,
    device: str,
    dtype: str,
    kv_dtype: str,
    batches: tuple[int, ...],
    contexts: tuple[int, ...],
    prompt: int,
    rounds: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how fast a model reads a prompt and decodes, on this machine."""
    from puna.commands.progress import bar
    from puna.engine.bench import measure, tokens_needed
    from puna.engine.loading import load_runner
    from puna.kernels.step import physical_cores

    checkpoint = resolve(model, tokenizer)
    num_threads = threads or physical_cores()
    runner = load_runner(
        checkpoint,
        device,
        dtype,
        kv_dtype=kv_dtype,
        kv_tokens=tokens_needed(batches, contexts, prompt),
        num_threads=num_threads,
        cache_folder=cache_folder(),
    )
    with bar("measuring", total=1 + len(batches) * len(contexts)) as advance:
        speeds = list(
            measure(
                runner,
                checkpoint,
                batches=batches,
                contexts=contexts,
                prompt=prompt,
                rounds=rounds,
                num_threads=num_threads if device == "cpu" else None,
                on_job=advance,
            )
        )
    if as_json:
        facts = {"model": model, "device": device, "threads": num_threads}
        click.echo(json.dumps(facts | {"speeds": [asdict(speed) for speed in speeds]}))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("job", "batch", "context", "tokens/s", "read", "of the limit"):
        table.add_column(name, justify="left" if name == "job" else "right")
    for speed in speeds:
        read = share = ""
        if speed.read is not None:
            read = f"{speed.read / 1e9:.1f} GB/s"
        if speed.read is not None and speed.limit is not None:
            share = f"{speed.read / speed.limit:.0%}"
        context = prompt if speed.job == "prompt" else speed.context
        row = (speed.job, str(speed.batch), str(context), f"{speed.tokens_per_second:,.1f}")
        table.add_row(*row, read, share)
    Console(highlight=False).print(table)
