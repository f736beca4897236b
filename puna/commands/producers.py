"""What commands that make data of a model's answers share: its sampler, its folder, its report."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from puna.commands.models import load, locate, resolve
from puna.commands.options import (
    F,
    compute_options,
    folder_option,
    json_option,
    kv_dtype_option,
    together,
    tokenizer_option,
)
from puna.data.prompts import Prompt
from puna.formats.checkpoint import Checkpoint
from puna.formats.files import atomic_file
from puna.tokenizer import Tokenizer
from puna.train.sampling import Dialog, Sampler, Scorer, engine_sampler, fits, fitted

_SMALL = 1 << 20  # bytes of a tensor that tells one checkpoint from another cheaply


@dataclass(frozen=True, slots=True)
class Generation:
    """How a command's model runs and draws (`generation_options`)."""

    tokenizer: Path | None
    device: str
    dtype: str
    kv_dtype: str
    top_p: float
    max_tokens: int
    seed: int


def source_options(*, model: str, prompts: str) -> Callable[[F], F]:
    """`--model --prompts --out`: who answers what, with a command's own words of both."""
    return together(
        click.option("--model", "-m", required=True, metavar="MODEL", help=model),
        click.option(
            "--prompts", type=click.Path(path_type=Path), required=True, metavar="FILE",
            help=prompts,
        ),
        folder_option,
    )  # fmt: skip


def generation_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--tokenizer --device --dtype --kv-dtype --top-p --max-tokens --seed --json`.

    The command gets all but the last as one `generation`.
    """

    @functools.wraps(function)
    def command(
        tokenizer: Path | None,
        device: str,
        dtype: str,
        kv_dtype: str,
        top_p: float,
        max_tokens: int,
        seed: int,
        **others: Any,
    ) -> None:
        drawn = Generation(tokenizer, device, dtype, kv_dtype, top_p, max_tokens, seed)
        function(generation=drawn, **others)

    return together(
        click.option("--top-p", type=float, default=1.0, show_default=True, help="1 is off."),
        click.option(
            "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True,
            help="Of an answer; one that has more is cut off, and not learned.",
        ),
        click.option("--seed", type=int, default=0, show_default=True),
        tokenizer_option,
        compute_options,
        kv_dtype_option,
        json_option,
    )(command)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """A model that answers: `identity` says which it is, `fits` whether an answer has room behind
    a dialog."""

    sampler: Sampler
    tokenizer: Tokenizer
    fits: Callable[[Dialog], bool]
    identity: dict[str, Any]


def ask(model: str, generation: Generation) -> Asked:
    """Loads the model of `--model` and its options."""
    checkpoint = resolve(model, generation.tokenizer)
    llm = load(
        checkpoint,
        device=generation.device,
        dtype=generation.dtype,
        kv_dtype=generation.kv_dtype,
    )
    max_tokens, top_p = generation.max_tokens, generation.top_p
    sampler = engine_sampler(llm, max_tokens=max_tokens, top_p=top_p)
    has_room = partial(
        fits, llm.tokenizer, max_tokens=max_tokens, context=checkpoint.config.context_length
    )
    identity = {
        "model": model,
        "weights": weights_fingerprint(checkpoint),
        "dtype": generation.dtype,
        "kv_dtype": generation.kv_dtype,
        "max_tokens": max_tokens,
        "top_p": top_p,
    }
    return Asked(sampler, llm.tokenizer, has_room, identity)


@dataclass(frozen=True, slots=True)
class Judge:
    """A reward model: `identity` says which, `fits` whether it can read an answer to a dialog."""

    scorer: Scorer
    fits: Callable[[Dialog], bool]
    identity: str


def judge(model: str, asked: Asked, generation: Generation) -> Judge:
    """Loads a reward model for the answers of a model. ValueError where it is none, or of another
    vocabulary."""
    from puna.train.scoring import open_scorer

    checkpoint = resolve(model)
    scorer = open_scorer(
        locate(model), vocabulary=asked.tokenizer.vocabulary, device=generation.device
    )
    tokenizer, context = checkpoint.tokenizer(), checkpoint.config.context_length
    has_room = partial(fits, tokenizer, max_tokens=generation.max_tokens, context=context)
    return Judge(
        fitted(scorer, tokenizer, context), has_room, f"{model} {weights_fingerprint(checkpoint)}"
    )


def with_room(
    prompts: Sequence[Prompt], asked: Asked, judges: Sequence[Judge], max_tokens: int
) -> list[Prompt]:
    """Those that leave room for an answer, with all models; ValueError where none does."""
    kept = [
        prompt
        for prompt in prompts
        if asked.fits(prompt.messages) and all(each.fits(prompt.messages) for each in judges)
    ]
    if not kept:
        raise ValueError(
            f"none of {len(prompts)} prompts leaves room for --max-tokens {max_tokens} in the "
            "context"
        )
    return kept


def weights_fingerprint(checkpoint: Checkpoint) -> str:
    """Tells checkpoints of one shape apart without reading all of them: by every small tensor, and
    the first layer."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(checkpoint.tensors.items()):
        if name.startswith("layers.0.") or tensor.num_bytes <= _SMALL:
            digest.update(name.encode())
            digest.update(tensor.read().tobytes())
    return digest.hexdigest()


def dialogs_digest(dialogs: Sequence[Any]) -> str:
    """Tells lists of dialogs, or of what is said in them, apart."""
    return hashlib.blake2b(repr(list(dialogs)).encode(), digest_size=8).hexdigest()


def begin(out: Path) -> None:
    """The folder of `--out`, made or gone on with. ValueError for one that holds other things."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the name of a folder")
    out.mkdir(parents=True, exist_ok=True)
    others = sorted(each.name for each in out.iterdir() if not each.name.startswith("."))
    if others and not any(out.glob("*.settings.json")):
        raise ValueError(f"{out} holds other things ({others[0]}); give another folder")


def write_json(path: Path, values: Any) -> None:
    with atomic_file(path, overwrite=True) as file:
        file.write((json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def report(out: Path, values: dict[str, Any], *, as_json: bool, shown: str | None = None) -> None:
    """Writes `out`/report.json and prints it: as JSON, or as `shown`, or a line for each value."""
    write_json(out / "report.json", values)
    if as_json:
        click.echo(json.dumps(values, ensure_ascii=False))
        return
    if shown is not None:
        click.echo(shown)
        return
    for name, value in values.items():
        click.echo(f"{name.replace('_', ' '):<24} {_shown(value)}")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items()) or "none"
    return str(value)
