"""Options that mean the same in every command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from puna.engine.params import SamplingParams
from puna.kernels.kv_types import KV_TYPES

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Scope:
    """What of which text counts: windows of `context` tokens, the first `chunks` of them (None:
    all), overlapping by all but `stride` tokens (None: not, and their second halves count)."""

    text: Path
    context: int = 512
    stride: int | None = None
    chunks: int | None = None


def together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Options as one decorator, in the order in which the help shows them."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def model_options(default: str = "cria") -> Callable[[F], F]:
    """`--model --tokenizer --device --dtype --kv-dtype`: which model, and how it runs."""
    return together(
        click.option(
            "--model", "-m", default=default, show_default=True, metavar="MODEL",
            help="A file or folder in any format, a shipped model, or a hub's (see puna pull).",
        ),
        tokenizer_option,
        compute_options,
        kv_dtype_option,
    )  # fmt: skip


def tokenizer_option(function: F) -> F:
    """`--tokenizer`: of a model that comes without one."""
    return click.option(
        "--tokenizer", type=click.Path(path_type=Path), metavar="PATH",
        help="Tokenizer file, where none lies beside the weights.",
    )(function)  # fmt: skip


def kv_dtype_option(function: F) -> F:
    """`--kv-dtype`: how keys and values are kept."""
    return click.option(
        "--kv-dtype", type=click.Choice(["auto", *KV_TYPES]), default="auto", show_default=True,
        help="Type of the keys and values that are kept; auto: f16, or f32 if the weights are.",
    )(function)  # fmt: skip


def compute_options(function: F) -> F:
    """`--device --dtype`: where a network runs, and in what."""
    return together(
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps."),
        click.option(
            "--dtype", type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8", "int4"]),
            default="auto", show_default=True,
            help="Type of the weights; auto: as stored, where that can be run; int8, int4: GPUs.",
        ),
    )(function)  # fmt: skip


def text_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--text --context --stride --chunks`, which the command gets as one `scope`."""

    @functools.wraps(function)
    def command(
        text: Path, context: int, stride: int | None, chunks: int | None, **others: Any
    ) -> None:
        function(scope=Scope(text, context, stride, chunks), **others)

    return together(
        click.option(
            "--text", type=click.Path(path_type=Path), required=True, metavar="FILE",
            help=".txt or .jsonl, also .zst.",
        ),
        click.option(
            "--context", type=click.IntRange(min=4), default=512, show_default=True,
            help="Tokens that the model sees at once.",
        ),
        click.option(
            "--stride", type=click.IntRange(min=1), metavar="N",
            help="Overlapping windows that move by N.",
        ),
        click.option("--chunks", type=click.IntRange(min=1), help="Only the text's first ones."),
    )(command)  # fmt: skip


def sampling_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--temperature --top-k --top-p --seed --max-tokens --stop --json-schema ...`: what is drawn.

    The command gets them as one `sampling`.
    """

    @functools.wraps(function)
    def command(
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int | None,
        max_tokens: int | None,
        stop: tuple[str, ...],
        json_schema: Path | None,
        regex: str | None,
        grammar: Path | None,
        **others: Any,
    ) -> None:
        sampling = SamplingParams(
            temperature,
            top_k,
            top_p,
            seed,
            max_tokens=max_tokens,
            stop=stop,
            json_schema=None if json_schema is None else _text_of(json_schema),
            regex=regex,
            grammar=None if grammar is None else _text_of(grammar),
        )
        function(sampling=sampling, **others)

    return together(
        click.option(
            "--temperature", type=float, default=0.6, show_default=True, help="0 is greedy."
        ),
        click.option("--top-k", type=int, default=0, show_default=True, help="0 is off."),
        click.option("--top-p", type=float, default=0.9, show_default=True, help="1 is off."),
        click.option("--seed", type=int, help="Draws the same text again."),
        click.option(
            "--max-tokens", type=click.IntRange(min=1),
            help="Stop after this many.  [default: 256, or where the context ends]",
        ),
        click.option(
            "--stop", multiple=True, metavar="TEXT", help="Stop before this text; repeatable."
        ),
        click.option(
            "--json-schema", type=click.Path(path_type=Path), metavar="FILE",
            help="Write JSON that fits this schema.",
        ),
        click.option("--regex", metavar="TEXT", help="Write what this expression matches."),
        click.option(
            "--grammar", type=click.Path(path_type=Path), metavar="FILE",
            help="Write what this Lark grammar allows.",
        ),
    )(command)  # fmt: skip


def draft_option(function: F) -> F:
    """`--draft`: what guesses tokens ahead."""
    return click.option(
        "--draft", metavar="MODEL",
        help="Guess ahead with a smaller model of the same vocabulary, or prompt-lookup; faster, "
        "the same text.",
    )(function)  # fmt: skip


def lora_option(function: F) -> F:
    """`--lora`: adapters, as `commands.models.opened_adapter` reads them."""
    return click.option(
        "--lora", "adapters", multiple=True, metavar="PATH[:SCALE]",
        help="Add this LoRA adapter (PEFT, GGUF or ggla; a path or a hub's name); repeatable.",
    )(function)  # fmt: skip


def tensor_parallel_option(function: F) -> F:
    """`--tensor-parallel`: one model in several processes."""
    return click.option(
        "--tensor-parallel", is_flag=True,
        help="Share the model among the processes of torchrun --nproc-per-node N -m puna ...",
    )(function)  # fmt: skip


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start})") from None


def threads_option(function: F) -> F:
    """`--threads`: of the engines behind a server."""
    return click.option(
        "--threads", type=click.IntRange(min=1), metavar="N",
        help="Processor threads of each engine.  [default: one a core; 1 for a tiny model]",
    )(function)  # fmt: skip


def address_options(port: int) -> Callable[[F], F]:
    """`--host --port`: where a server listens."""
    return together(
        click.option(
            "--host", default="127.0.0.1", show_default=True, metavar="HOST",
            help="Where to listen.",
        ),
        click.option(
            "--port", type=click.IntRange(0, 65535), default=port, show_default=True,
            metavar="PORT", help="Port; 0 is any that is free.",
        ),
    )  # fmt: skip


def folder_option(function: F) -> F:
    """`--out FOLDER` of work that is done piece by piece."""
    return click.option(
        "--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
        help="Folder of the result; the same command goes on with one that was begun.",
    )(function)  # fmt: skip


def json_option(function: F) -> F:
    """`--json`: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
