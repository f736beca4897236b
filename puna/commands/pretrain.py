"""`puna pretrain`: trains a base model on text."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from puna.commands.progress import bar
from puna.commands.ranks import is_first, said_once
from puna.commands.recipes import (
    Count,
    num_pieces,
    read_texts,
    resolved_run,
    show_plan,
    turns_the_dial,
)
from puna.commands.train_options import ON_RESUME, TrainOptions, given_options, train_options
from puna.commands.train_run import train_run
from puna.config import PRESETS, preset
from puna.recipes import RECIPES, WITH_SOURCES
from puna.tokenizer import Vocabulary

if TYPE_CHECKING:
    from puna.train.pretrain import PretrainConfig


@click.command()
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--recipe", type=click.Choice(list(RECIPES)),
              help="A named run, of which options given here take the place; for 'cria' TEXTS is "
              "the folder of its sources.")  # fmt: skip
@click.option("--size", type=Count(), help="Parameters, such as 350M, of a model and run made for "
              "it.")  # fmt: skip
@click.option("--tokens", type=Count(), help="Tokens to train on, such as 20B, instead of steps; "
              "20 a parameter by default with --size, which follows from it.")  # fmt: skip
@click.option("--model", "-m", default="tiny", show_default=True,
              help=f"Preset: {', '.join(PRESETS)}.")  # fmt: skip
@click.option("--tokenizer", help="Tokenizer file, or a shipped model's; by default that of a "
              "corpus, or cria's.")  # fmt: skip
@click.option("--context-length", type=int, help="Tokens of a window; the preset's by default.")
@click.option("--steps", type=int, default=1000, show_default=True, help="Optimizer steps.")
@click.option("--held-out", type=int, default=16, show_default=True,
              help="Windows kept from training, to evaluate on.")  # fmt: skip
@click.option("--separator", help="Line that parts documents in a .txt file.")
@click.option("--mix", help="Weight of each source of a corpus, books=0.3,web=0.7; by default the "
              "one it declares.")  # fmt: skip
@click.option("--document-mask", is_flag=True, help="Attention stays inside a document.")
@train_options(batch_size=16, learning_rate=3e-4)
def pretrain(
    options: TrainOptions,
    texts: tuple[Path, ...],
    recipe: str | None,
    size: float | None,
    tokens: float | None,
    model: str,
    tokenizer: str | None,
    context_length: int | None,
    steps: int,
    held_out: int,
    separator: str | None,
    mix: str | None,
    document_mask: bool,
) -> None:
    """Train a model on TEXTS, with Llama 2's optimizer.

    TEXTS are files (.txt, .jsonl, either also as .zst), or one folder that `puna data build` made.

    The run's folder holds its config, log.jsonl, loss.png and checkpoints, each of which opens as
    a model. Ctrl-C saves and stops; --resume goes on to the identical losses, with another
    --parallel, --batch-size or --micro-batch-size if asked.
    """
    from puna.train.pretrain import PretrainConfig
    from puna.train.pretrain import pretrain as train

    given = given_options()
    with said_once():
        dialed = turns_the_dial(given)
    run = train_run(
        options, PretrainConfig, train, "puna complete", on_resume=ON_RESUME | {"batch_size"}
    )
    if options.resume:
        run.resume()
        return
    with said_once():
        if not texts and not options.dry_run:
            raise ValueError("no texts to train on; give at least one file")
        corpus, vocabulary = read_texts(recipe, texts, tokenizer, separator)
        weights = _weights(mix) if mix is not None else corpus.mix if corpus else None
        shards = str(corpus.shards.resolve()) if corpus else None
        if recipe is not None or dialed:
            if options.parallel:
                given["parallel"] = run.parallel
            config = resolved_run(recipe, given, vocabulary)
            settings = options.guarded(config.settings)
            config = dataclasses.replace(config, settings=settings, mix=weights, shards=shards)
        else:
            from puna.recipes.resolve import steps_for

            assert options.batch_size is not None  # it has a default
            shape = dataclasses.replace(preset(model), vocab_size=num_pieces(vocabulary))
            if context_length is not None:
                shape = dataclasses.replace(shape, context_length=context_length)
            if tokens is not None:
                steps = steps_for(tokens, options.batch_size, shape.context_length)
            config = PretrainConfig(
                shape,
                options.settings(steps, run.parallel),
                options.batch_size,
                options.piece(options.batch_size, run.parallel),
                options.seed,
                held_out,
                mix=weights,
                document_mask=document_mask,
                shards=shards,
            )
    if options.dry_run:
        if is_first():
            show_plan(config, corpus, vocabulary)
        return

    def prepare() -> None:
        if recipe in WITH_SOURCES:
            _prepare_from_sources(options.out, config, WITH_SOURCES[recipe](), texts[0])
        else:
            assert vocabulary is not None  # there are texts
            _prepare(options.out, config, () if corpus else texts, vocabulary, separator)

    settings = config.settings
    with said_once():
        if run.window:
            run.window.check(settings.steps)
    run.start(prepare, settings)


def _weights(mix: str) -> dict[str, float]:
    """The weights of `books=0.3,web=0.7`."""
    weights = {}
    for item in mix.split(","):
        name, _, weight = item.rpartition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            name = ""
        if not name.strip():
            raise ValueError(f"--mix is like books=0.3,web=0.7; {item!r} is no source=weight")
    return weights


def _prepare_from_sources(
    out: Path, config: PretrainConfig, recipe: ModuleType, sources: Path
) -> None:
    """The corpus and the tokenizer of a recipe that makes both, then its run."""
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(temporary) / "corpus.jsonl"
        click.echo("Building the corpus and its tokenizer", err=True)
        recipe.build_corpus(sources, corpus)
        _prepare(out, config, (corpus,), recipe.tokenizer(corpus), None)


def _prepare(
    out: Path,
    config: PretrainConfig,
    texts: tuple[Path, ...],
    vocabulary: Vocabulary,
    separator: str | None,
) -> None:
    from puna.train.pretrain import prepare

    if not texts:
        prepare(out, config, (), vocabulary)
        return
    with bar("Tokenizing", total=None) as advance:
        prepare(out, config, texts, vocabulary, separator=separator, on_document=advance)
