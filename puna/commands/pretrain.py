"""`puna pretrain`: trains a base model on text."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from puna.commands.progress import bar
from puna.commands.ranks import (
    by_the_first,
    check_started,
    is_first,
    is_restarted,
    mark_job,
    said_by_one,
    said_once,
    starred,
)
from puna.commands.recipes import (
    Count,
    given_options,
    needed_to_train,
    num_pieces,
    read_texts,
    resolved_run,
    show_plan,
    turns_the_dial,
)
from puna.commands.training import say_event, training_bar
from puna.config import PRESETS, preset
from puna.parallel.layout import SCHEDULES
from puna.recipes import RECIPES, WITH_SOURCES
from puna.tokenizer import Vocabulary

if TYPE_CHECKING:
    from puna.train.pretrain import PretrainConfig
    from puna.train.profile import Window

# What may be said of a run that goes on; the rest is in its config.
_ON_RESUME = {
    "out", "resume", "parallel", "batch_size", "micro_batch_size",
    "tensorboard", "wandb", "profile", "hang_timeout",
}  # fmt: skip


@click.command()
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), callback=needed_to_train,
              help="Folder of the run.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--recipe", type=click.Choice(list(RECIPES)),
              help="A named run, of which options given here take the place; for 'cria' TEXTS is "
              "the folder of its sources.")  # fmt: skip
@click.option("--size", type=Count(), help="Parameters, such as 350M, of a model and run made for "
              "it.")  # fmt: skip
@click.option("--tokens", type=Count(), help="Tokens to train on, such as 20B, instead of steps; "
              "20 a parameter by default with --size, which follows from it.")  # fmt: skip
@click.option("--dry-run", is_flag=True, is_eager=True,
              help="Print the run as resolved, its memory and FLOPs; write nothing.")  # fmt: skip
@click.option("--model", "-m", default="tiny", show_default=True,
              help=f"Preset: {', '.join(PRESETS)}.")  # fmt: skip
@click.option("--tokenizer", help="Tokenizer file, or a shipped model's; by default that of a "
              "corpus, or cria's.")  # fmt: skip
@click.option("--context-length", type=int, help="Tokens of a window; the preset's by default.")
@click.option("--steps", type=int, default=1000, show_default=True, help="Optimizer steps.")
@click.option("--batch-size", type=int, default=16, show_default=True, help="Windows a step.")
@click.option("--micro-batch-size", type=int,
              help="Windows at once; the gradient accumulates over the batch.")  # fmt: skip
@click.option("--learning-rate", type=float, default=3e-4, show_default=True, help="Peak.")
@click.option("--warmup-steps", type=int, help="A tenth of the steps, 2000 at most, by default.")
@click.option("--weight-decay", type=float, default=0.1, show_default=True)
@click.option("--grad-clip", type=float, default=1.0, show_default=True)
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--compile/--no-compile", default=False, show_default=True, help="torch.compile.")
@click.option("--float8/--no-float8", default=False, show_default=True,
              help="Multiply in float8; needs torchao and a recent NVIDIA GPU.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--held-out", type=int, default=16, show_default=True,
              help="Windows kept from training, to evaluate on.")  # fmt: skip
@click.option("--eval-every", type=int, default=0, show_default=True, help="Steps; 0: at the end.")
@click.option("--statistics-every", type=int, default=0, show_default=True,
              help="Steps between norms of each layer; 0: none.")  # fmt: skip
@click.option("--tensorboard", is_flag=True, help="Log to TensorBoard, in the run's folder, too.")
@click.option("--wandb", is_flag=False, flag_value="puna", metavar="[PROJECT]",
              help="Log to Weights & Biases too.")  # fmt: skip
@click.option("--profile", metavar="STEP[:COUNT]", help="Steps to profile.")
@click.option("--checkpoint-every", type=int, default=200, show_default=True, help="Steps.")
@click.option("--parallel", default="", help="How torchrun's processes share the work: ways of "
              "dp, fsdp, tp, cp and pp, such as 'fsdp=2 tp=2'; a * takes the rest.")  # fmt: skip
@click.option("--hang-timeout", type=click.FloatRange(min=0), default=300, show_default=True,
              help="Seconds a process may stand still before the others name it and end; six times "
              "as long where it loads, compiles, evaluates or saves. 0: for ever.")  # fmt: skip
@click.option("--schedule", type=click.Choice(list(SCHEDULES)), default="1f1b",
              show_default=True, help="In what order a pipeline takes the pieces of a batch; "
              "interleaved: two stages a process.")  # fmt: skip
@click.option("--recompute", type=click.Choice(["none", "selective", "full"]), default="none",
              show_default=True, help="What the backward pass computes anew.")  # fmt: skip
@click.option("--loss-chunk", type=int, default=0, show_default=True,
              help="Tokens whose logits exist at once; 0: all of a piece.")  # fmt: skip
@click.option("--guard/--no-guard", default=True, show_default=True,
              help="Skip batches whose loss is no number or a spike, and go back to the last "
              "checkpoint where they keep coming; else end.")  # fmt: skip
@click.option("--separator", help="Line that parts documents in a .txt file.")
@click.option("--mix", help="Weight of each source of a corpus, books=0.3,web=0.7; by default the "
              "one it declares.")  # fmt: skip
@click.option("--document-mask", is_flag=True, help="Attention stays inside a document.")
def pretrain(
    texts: tuple[Path, ...],
    out: Path,
    resume: bool,
    recipe: str | None,
    size: float | None,
    tokens: float | None,
    dry_run: bool,
    model: str,
    tokenizer: str | None,
    context_length: int | None,
    steps: int,
    batch_size: int,
    micro_batch_size: int | None,
    learning_rate: float,
    warmup_steps: int | None,
    weight_decay: float,
    grad_clip: float,
    dtype: str,
    compile: bool,
    float8: bool,
    device: str,
    seed: int,
    held_out: int,
    eval_every: int,
    statistics_every: int,
    tensorboard: bool,
    wandb: str | None,
    profile: str | None,
    checkpoint_every: int,
    parallel: str,
    hang_timeout: float,
    schedule: str,
    recompute: str,
    loss_chunk: int,
    guard: bool,
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
    from puna.train import sinks
    from puna.train.profile import Window

    given = given_options()
    asked = {"tensorboard": ""} if tensorboard else {}
    if wandb is not None:
        asked["wandb"] = wandb
    with said_once():
        dialed = turns_the_dial(given)
        line, parallel = parallel, starred(parallel)
        if line:
            given["parallel"] = parallel
        if out is not None:
            sinks.chosen(out, asked)
        window = None if profile is None else Window.parse(profile)
        if resume:
            _only_out_is_given()
            check_started(parallel or _own_layout(out))
        elif not texts and not dry_run:
            raise ValueError("no texts to train on; give at least one file")
    if resume:
        if {"batch_size", "micro_batch_size"} & set(given):
            _change_batch(out, parallel, given, hang_timeout)
        _train(out, parallel or None, asked, window, hang_timeout)
        return

    def prepare() -> None:
        if is_restarted(out):
            click.echo(f"started again: going on with {out}", err=True)
            return
        if out.exists():
            raise ValueError(f"{out} exists already; give --resume to go on with it")
        if recipe in WITH_SOURCES:
            _prepare_from_sources(out, config, WITH_SOURCES[recipe](), texts[0])
        else:
            assert vocabulary is not None  # there are texts
            _prepare(out, config, () if corpus else texts, vocabulary, separator)
        mark_job(out)

    with said_once():
        corpus, vocabulary = read_texts(recipe, texts, tokenizer, separator)
        weights = _weights(mix) if mix is not None else corpus.mix if corpus else None
        shards = str(corpus.shards.resolve()) if corpus else None
    if recipe is not None or dialed:
        with said_once():
            config = resolved_run(recipe, given, vocabulary)
            config = dataclasses.replace(config, mix=weights, shards=shards)
    else:
        from puna.parallel.layout import Layout, usual_micro_batch
        from puna.recipes.resolve import steps_for
        from puna.train.loop import Settings
        from puna.train.pretrain import PretrainConfig

        with said_once():
            shape = dataclasses.replace(preset(model), vocab_size=num_pieces(vocabulary))
            if context_length is not None:
                shape = dataclasses.replace(shape, context_length=context_length)
            if tokens is not None:
                steps = steps_for(tokens, batch_size, shape.context_length)
            settings = Settings(
                steps=steps,
                learning_rate=learning_rate,
                warmup_steps=min(2000, steps // 10) if warmup_steps is None else warmup_steps,
                weight_decay=weight_decay,
                grad_clip=grad_clip,
                dtype=dtype,
                compile=compile,
                float8=float8,
                device=device,
                parallel=parallel,
                schedule=schedule,
                recompute=recompute,
                loss_chunk=loss_chunk,
                eval_every=eval_every,
                statistics_every=statistics_every,
                checkpoint_every=checkpoint_every,
            )
            piece = micro_batch_size
            if piece is None or "*" in line:  # what is left may have smaller shares of a batch
                layout = Layout.parse(parallel)
                piece = usual_micro_batch(layout, batch_size, schedule, at_most=piece)
            config = PretrainConfig(
                shape,
                settings,
                batch_size,
                piece,
                seed,
                held_out,
                mix=weights,
                document_mask=document_mask,
                shards=shards,
            )
    if not guard:
        unguarded = dataclasses.replace(
            config.settings, spike_deviations=0, max_skips=0, max_rollbacks=0
        )
        config = dataclasses.replace(config, settings=unguarded)
    if dry_run:
        if is_first():
            show_plan(config, corpus, vocabulary)
        return
    from puna.train.pretrain import check_machine

    settings = config.settings
    with said_once():
        check_started(settings.parallel)
        check_machine(settings.device, settings.float8)
        if window:
            window.check(settings.steps)
    if settings.parallel:
        by_the_first(prepare, settings.device, hang_timeout)
    else:
        prepare()
    _train(out, settings.parallel or None, asked, window, hang_timeout)


def _change_batch(out: Path, parallel: str, given: dict[str, Any], hang_timeout: float) -> None:
    """What --resume has to say of the batch, before the run goes on."""
    from puna.train.pretrain import change_batch_size, run_config

    def change() -> None:
        sizes = given.get("batch_size"), given.get("micro_batch_size")
        change_batch_size(out, *sizes, parallel=parallel or None)

    with said_once():
        settings = run_config(out, parallel or None).settings
    if settings.parallel:
        by_the_first(change, settings.device, hang_timeout)
    else:
        change()


def _own_layout(run: Path) -> str:
    from puna.train.pretrain import run_config

    return run_config(run).settings.parallel


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


def _only_out_is_given() -> None:
    """ValueError if --resume came with options that the run's own config decides."""
    if ignored := sorted(set(given_options()) - _ON_RESUME):
        names = ", ".join(name.replace("_", "-") for name in ignored)
        raise ValueError(f"a resumed run keeps its own config: leave out {names}")


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


def _train(
    out: Path,
    parallel: str | None,
    asked: dict[str, str],
    profile: Window | None,
    hang_timeout: float,
) -> None:
    from puna.formats.run_folder import checkpoint_path, steps_saved
    from puna.parallel.place import leave
    from puna.train.plot import plot_loss, plot_statistics
    from puna.train.pretrain import check_machine, run_config
    from puna.train.pretrain import pretrain as run_pretrain
    from puna.train.sinks import chosen, opened

    with said_once():
        config = run_config(out, parallel)
        settings, layout = config.settings, config.layout
        check_machine(settings.device, settings.float8)
        if profile:
            profile.check(settings.steps)
    if layout.num_ranks > 1 and is_first():
        share = config.last_batch_size // layout.num_data_ranks
        click.echo(
            f"{layout.num_ranks} processes: {layout}; each batch's share is {share} windows, "
            f"{config.micro_batch_size} at once",
            err=True,
        )
    sinks = opened(out, chosen(out, asked) if is_first() else {})
    bar = training_bar(settings.steps, shown=is_first())
    with said_by_one(), bar as (start, advance), sinks as (begin, write):

        def on_start(step: int) -> None:
            start(step)
            begin(step)

        def on_record(record: dict[str, Any]) -> None:
            advance(record)
            write(record)

        finished = run_pretrain(
            out,
            parallel=parallel,
            hang_timeout=hang_timeout,
            on_start=on_start,
            on_record=on_record,
            on_event=say_event,
            profile=profile,
        )
    leave()
    if not is_first():
        return
    plot_loss(out)
    if picture := plot_statistics(out):
        click.echo(f"statistics of the layers: {picture}", err=True)
    if profile:
        _say_profile(out / "profile", profile)
    newest = checkpoint_path(out, steps_saved(out)[-1])
    if not finished:
        click.echo(f"stopped at {newest.name}; go on with --out {out} --resume", err=True)
        raise click.Abort
    click.echo(f"trained: {newest}; losses in {out / 'log.jsonl'} and {out / 'loss.png'}", err=True)
    click.echo(f"try it: puna complete --model {newest}", err=True)


def _say_profile(folder: Path, window: Window) -> None:
    if found := sorted(folder.glob("*.txt"), key=lambda path: path.stat().st_mtime):
        click.echo(f"profile: {found[-1]}, and the trace beside it", err=True)
    else:
        click.echo(f"no profile: the run was past step {window.last}, or not yet there", err=True)
