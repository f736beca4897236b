"""What `puna eval judge` and `puna eval safety` share: a model that writes, and its options."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.models import load, resolve
from puna.commands.options import (
    compute_options,
    json_option,
    kv_dtype_option,
    together,
    tokenizer_option,
)
from puna.commands.producers import weights_fingerprint
from puna.engine.params import SamplingParams
from puna.evaluate.replies import Prompt, fits, replies

if TYPE_CHECKING:
    from puna.engine.llm import LLM


@dataclass(frozen=True, slots=True)
class Writing:
    """How a model runs and draws (`writing_options`)."""

    tokenizer: Path | None
    device: str
    dtype: str
    kv_dtype: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    def as_settings(self) -> dict[str, Any]:
        """What of it decides what is written."""
        return {
            "dtype": self.dtype,
            "kv_dtype": self.kv_dtype,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Writer:
    """A model that writes: `identity` says which, and how it draws."""

    llm: LLM
    sampling: SamplingParams
    identity: dict[str, Any]

    def write(self, prompts: Sequence[Prompt], stop: tuple[str, ...] = ()) -> list[str]:
        """What follows each prompt, up to any of `stop`."""
        return replies(self.llm, prompts, replace(self.sampling, stop=stop))

    def fits(self, prompt: Prompt) -> bool:
        """Whether there is room for it and a reply."""
        return fits(self.llm, prompt, self.sampling.max_tokens or 0)


def writing_options(
    *, temperature: float, top_p: float, max_tokens: int
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--temperature --top-p --max-tokens --seed`, how the model runs, and `--json`.

    With these defaults; the command gets all but the last as one `writing`.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(
            tokenizer: Path | None,
            device: str,
            dtype: str,
            kv_dtype: str,
            temperature: float,
            top_p: float,
            max_tokens: int,
            seed: int,
            **others: Any,
        ) -> None:
            writing = Writing(
                tokenizer, device, dtype, kv_dtype, temperature, top_p, max_tokens, seed
            )
            function(writing=writing, **others)

        return together(
            click.option(
                "--temperature", type=float, default=temperature, show_default=True,
                help="0 is greedy.",
            ),
            click.option(
                "--top-p", type=float, default=top_p, show_default=True, help="1 is off."
            ),
            click.option(
                "--max-tokens", type=click.IntRange(min=1), default=max_tokens, show_default=True,
                help="Of what the model writes.",
            ),
            click.option("--seed", type=int, default=0, show_default=True),
            tokenizer_option,
            compute_options,
            kv_dtype_option,
            json_option,
        )(command)  # fmt: skip

    return decorate


def open_writer(model: str, writing: Writing) -> Writer:
    """Loads a model."""
    sampling = SamplingParams(
        writing.temperature,
        top_p=writing.top_p,
        seed=writing.seed,
        max_tokens=writing.max_tokens,
    )
    checkpoint = resolve(model, writing.tokenizer)
    llm = load(
        checkpoint,
        device=writing.device,
        dtype=writing.dtype,
        kv_dtype=writing.kv_dtype,
    )
    identity = {"model": model, "weights": weights_fingerprint(checkpoint)} | writing.as_settings()
    return Writer(llm, sampling, identity)
