"""`puna compare`: people compare answers at a web page, for reward models to learn from."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from puna.commands.options import (
    address_options,
    compute_options,
    kv_dtype_option,
    threads_option,
    tokenizer_option,
)
from puna.commands.serve import NEEDED


@click.command()
@click.argument("models", nargs=-1, metavar="[[NAME=]MODEL]...")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
    help="Where comparisons are kept, one file a batch; what is there is gone on with.",
)  # fmt: skip
@click.option(
    "--prompts", type=click.Path(path_type=Path), metavar="FILE",
    help="JSONL of dialogs to answer ({\"messages\": [...]}).  [default: people write their own]",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=100, show_default=True, metavar="N",
    help="Comparisons a batch.",
)  # fmt: skip
@click.option(
    "--temperature", "temperatures", type=click.FloatRange(min=0), multiple=True,
    default=(0.7, 1.0), show_default=True, metavar="T",
    help="Answers are drawn at these; repeatable.",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N",
    help="Of an answer.  [default: 256, or the context's end]",
)  # fmt: skip
@click.option("--seed", type=int, help="Draw the same models and answers again.")
@click.option(
    "--lora", "adapters", multiple=True, metavar="NAME=ADAPTER",
    help="Let a model with this LoRA adapter answer too; repeatable.",
)  # fmt: skip
@tokenizer_option
@compute_options
@kv_dtype_option
@threads_option
@address_options(8001)
def compare(
    models: tuple[str, ...],
    out: Path,
    prompts: Path | None,
    batch_size: int,
    temperatures: tuple[float, ...],
    max_tokens: int | None,
    seed: int | None,
    adapters: tuple[str, ...],
    host: str,
    port: int,
    **engine: Any,
) -> None:
    """Collect preferences: two answers side by side, and people say which is better.

    Answers come from MODELS (two for a comparison of two; one is compared with itself at several
    temperatures; the shipped one by default). A person picks one, with the paper's four ratings and
    a safety label. When a batch is full, train a reward model on it (puna reward), tune the model
    against that, and collect the next batch with the new model.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"puna compare needs {', '.join(missing)}: pip install 'puna[serve]'")
    from puna.commands.engines import loaded
    from puna.data.prompts import read_prompts
    from puna.serve.compare.app import create_compare_app
    from puna.serve.compare.batches import Batches
    from puna.serve.compare.desk import Desk
    from puna.serve.compare.pairs import candidates
    from puna.serve.deadlines import Stopping
    from puna.serve.exposure import is_loopback
    from puna.serve.listening import bind, closed_after
    from puna.serve.running import RunOptions, run
    from puna.serve.stack import Protection

    if len(set(temperatures)) == 1 and temperatures[0] == 0 and len(models) + len(adapters) < 2:
        raise ValueError(
            "one model at --temperature 0 has one answer: give two models or a temperature above 0"
        )
    if not is_loopback(host):
        raise ValueError(
            f"--host {host} lets other machines in: bind to 127.0.0.1, and open a tunnel to it"
        )
    asked = [] if prompts is None else [each.messages for each in read_prompts(prompts)]
    batches = Batches(out, batch_size)
    listener = bind(host, port)
    stopping = Stopping()
    options = engine | {"draft": None}
    with (
        closed_after(listener),
        loaded(models or ("cria-chat",), adapters, options, None, None) as served,
    ):
        pool = candidates(served.all(), temperatures)
        desk = Desk(pool, asked, batches, seed=seed, max_tokens=max_tokens)
        app = create_compare_app(desk, served, stopping, Protection(hosts=(host,)))

        def announce(url: str) -> None:
            names = ", ".join(each.name for each in served.all())
            click.echo(f"comparing {names} at {url}; kept in {out}", err=True)

        code = run(app, listener, stopping, RunOptions(), announce)
    click.echo(f"{batches.total} comparisons in {out}", err=True)
    sys.exit(code)
