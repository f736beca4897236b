"""`puna pretrain` with a recipe or the dial: what was given, what comes of it, and how it looks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.models import named_vocabulary
from puna.commands.render import facts_table, human_bytes, human_count
from puna.recipes import WITH_SOURCES
from puna.tokenizer import Vocabulary

if TYPE_CHECKING:
    from puna.data.corpus import Corpus
    from puna.train.pretrain import PretrainConfig

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


def read_texts(
    recipe: str | None, texts: tuple[Path, ...], tokenizer: str | None, separator: str | None
) -> tuple[Corpus | None, Vocabulary | None]:
    """The corpus where TEXTS is the folder of one, and the vocabulary to train with.

    No vocabulary for a recipe that makes its own, or where there is neither text nor tokenizer.
    """
    if recipe in WITH_SOURCES:
        if texts and not (len(texts) == 1 and texts[0].is_dir()):
            raise ValueError(f"--recipe {recipe} takes one folder, that of its sources")
        if tokenizer is not None or separator is not None:
            raise ValueError(f"--recipe {recipe} makes corpus and tokenizer; leave out --tokenizer "
                             "and --separator")  # fmt: skip
        return None, None

    from puna.data.corpus import open_corpus

    corpus = open_corpus(texts[0]) if len(texts) == 1 and texts[0].is_dir() else None
    if tokenizer is None and corpus is not None and corpus.vocabulary is not None:
        return corpus, corpus.vocabulary
    return corpus, named_vocabulary(tokenizer or "cria") if texts or tokenizer else None


def num_pieces(vocabulary: Vocabulary | None) -> int:
    """The size of a vocabulary; Llama 2's where none was chosen, which only a plan allows."""
    return 32000 if vocabulary is None else len(vocabulary)


class Count(click.ParamType[float]):
    """A number such as 350M or 1.5B."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMBGT]?)", str(value).upper())
        if not found or not float(found[1]):
            self.fail(f"{value!r} is no number such as 350M, 1.5B or 2T", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


def turns_the_dial(given: dict[str, Any]) -> bool:
    """Whether the model is to be made of a size or a number of tokens.

    ValueError where it is given by name too, or tokens by steps.
    """
    if {"tokens", "steps"} <= set(given):
        raise ValueError("--tokens says how many steps there are; leave out one of them")
    named = [f"--{name}" for name in ("recipe", "model") if name in given]
    if "size" in given and named:
        raise ValueError(f"--size makes a model of its own; leave out {named[0]}, or --size")
    return "size" in given or ("tokens" in given and not named)


def resolved_run(
    recipe: str | None, given: dict[str, Any], vocabulary: Vocabulary | None
) -> PretrainConfig:
    """The run of a recipe, or of the dial where it is None, with the options that were given.

    `vocabulary` is None in a plan without a corpus. ValueError where something does not fit.
    """
    from puna.recipes import RECIPES
    from puna.recipes.resolve import OPTIONS, resolve

    vocab_size = num_pieces(vocabulary)
    values = {name: value for name, value in given.items() if name in OPTIONS and name != "mix"}
    if recipe is not None:
        base = RECIPES[recipe]()
    else:
        from puna.recipes.dial import dial

        base = dial(vocab_size, size=given.get("size"), tokens=given.get("tokens"))
    config = resolve(base, values, vocab_size=vocab_size)
    if vocabulary is not None and config.model.vocab_size != len(vocabulary):
        raise ValueError(
            f"recipe {recipe} has a vocabulary of {config.model.vocab_size} pieces, and the "
            f"tokenizer {len(vocabulary)}; build the corpus with a tokenizer of "
            f"{config.model.vocab_size}, or give --model, which takes the tokenizer's number"
        )
    return config


def show_plan(config: PretrainConfig, corpus: Corpus | None, vocabulary: Vocabulary | None) -> None:
    """Prints the run as resolved, and what it will take.

    ValueError where its corpus is too small or of another vocabulary.
    """
    from puna.recipes.plan import plan
    from puna.train.pretrain import check_shards

    if corpus is not None and vocabulary is not None:
        check_shards(config, vocabulary)

    found = plan(config)
    model, settings, layout = config.model, config.settings, config.layout
    per_parameter = found.tokens / model.num_parameters
    share = config.last_batch_size // layout.num_data_ranks
    facts = {
        "model": f"{model.num_layers} layers of {model.dim}, {model.num_heads} heads, "
        f"{model.num_kv_heads} of keys and values, feed-forward {model.ffn_dim}, vocabulary "
        f"{model.vocab_size}{', tied' if model.tied else ''}",
        "parameters": f"{model.num_parameters:,}",
        "tokens": f"{found.tokens:,} ({per_parameter:.3g} a parameter)",
        "steps": f"{settings.steps:,}, {settings.warmup_steps:,} of them warm-up",
        "learning_rate": f"{settings.learning_rate:g}, cosine to {settings.final_fraction:.0%}",
        "batch": f"{config.last_batch_size:,} windows of {model.context_length:,} = "
        f"{found.tokens_per_batch:,} tokens",
        "layout": f"{layout}: {layout.num_ranks:,} processes on {settings.device}, {share} windows "
        f"of a batch each, {config.micro_batch_size} at once",
        "computing": f"{'float8' if settings.float8 else settings.dtype}, "
        f"{'compiled' if settings.compile else 'not compiled'}, recompute {settings.recompute}, "
        f"logits of {settings.loss_chunk or 'all'} tokens at once",
        "memory": _memory(found),
        "compute": f"{found.flops:.3g} FLOPs (6N + 12LdT a token)",
        **({"time": _time(config)} if settings.device == "cuda" else {}),
        "saved": f"every {settings.checkpoint_every:,} steps, {settings.keep_checkpoints} kept",
        "evaluated": f"{_every(settings.eval_every)} on {config.held_out_windows} windows of each "
        "source",
    }
    if corpus is not None:
        facts["corpus"] = _corpus(corpus, found.tokens)
    if config.mix is not None:
        total = sum(config.mix.values())
        shares = (f"{name} {weight / total:.1%}" for name, weight in config.mix.items() if weight)
        facts["mix"] = ", ".join(shares)
    facts_table("The run", facts)


def _memory(found: Any) -> str:
    memory = found.memory
    sizes = dataclasses.asdict(memory).items()
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in sizes if size)
    if found.state_only:
        parts += "; activations are not counted"
    return f"{human_bytes(memory.peak)} a process: {parts}"


def _time(config: PretrainConfig) -> str:
    """How long a run on GPUs is, and that `puna plan train` knows of others."""
    from puna.recipes.plan import USUAL_GPU, takes

    count = config.layout.num_ranks
    try:
        plan = takes(config)
    except ValueError as error:
        return str(error)
    return (
        f"{human_count(plan.gpu_hours)} GPU-hours, {plan.days:,.1f} days on {count:,} x "
        f"{USUAL_GPU} at {plan.tokens_per_second:,.0f} tokens/s each (others: puna plan train)"
    )


def _every(steps: int) -> str:
    return f"every {steps:,} steps" if steps else "at the end"


def _corpus(corpus: Corpus, tokens: int) -> str:
    manifest = corpus.manifest
    epochs = tokens / max(1, manifest.num_tokens)
    return (
        f"{corpus.shards}: {human_count(manifest.num_tokens)} tokens in "
        f"{manifest.num_documents:,} documents, seen {epochs:.3g} times"
    )
