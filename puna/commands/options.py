"""Options that mean the same in every command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from puna.engine.sampling import Sampling

F = TypeVar("F", bound=Callable[..., Any])


def _all(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def model_options(function: F) -> F:
    """`--model --tokenizer --device --dtype`: which model, and where it runs."""
    return _all(
        click.option(
            "--model", "-m", default="cria", show_default=True, metavar="MODEL",
            help="A file or folder in any format, or a model that ships with Puna.",
        ),
        click.option(
            "--tokenizer", type=click.Path(path_type=Path), metavar="PATH",
            help="Tokenizer file, where none lies beside the weights.",
        ),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps."),
        click.option(
            "--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32",
            show_default=True, help="Type that weights are computed in.",
        ),
    )(function)  # fmt: skip


def sampling_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--temperature --top-k --top-p --seed --max-tokens --stop`: how text is drawn.

    The command gets the first four as one `sampling`.
    """

    @functools.wraps(function)
    def command(
        temperature: float, top_k: int, top_p: float, seed: int | None, **others: Any
    ) -> None:
        function(sampling=Sampling(temperature, top_k, top_p, seed), **others)

    return _all(
        click.option(
            "--temperature", type=float, default=0.6, show_default=True, help="0 is greedy."
        ),
        click.option("--top-k", type=int, default=0, show_default=True, help="0 is off."),
        click.option("--top-p", type=float, default=0.9, show_default=True, help="1 is off."),
        click.option("--seed", type=int, help="Draws the same text again."),
        click.option(
            "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True,
            help="Stop after this many.",
        ),
        click.option(
            "--stop", multiple=True, metavar="TEXT", help="Stop before this text; repeatable."
        ),
    )(command)  # fmt: skip


def json_option(function: F) -> F:
    """`--json`: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
