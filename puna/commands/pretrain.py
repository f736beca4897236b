"""`puna pretrain`: trains a base model on text."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from puna.commands.models import named_vocabulary
from puna.commands.progress import bar, say_event, training_bar
from puna.commands.ranks import (
    by_the_first,
    check_started,
    is_first,
    is_restarted,
    mark_job,
    said_by_one,
    said_once,
)
from puna.config import PRESETS, preset
from puna.parallel.layout import SCHEDULES
from puna.tokenizer import Vocabulary

if TYPE_CHECKING:
    from puna.train.pretrain import PretrainConfig


@click.command()
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--recipe", type=click.Choice(["cria"]),
              help="A named run; TEXTS is then the one folder of its sources.")  # fmt: skip
@click.option("--model", "-m", default="tiny", show_default=True,
              help=f"Preset: {', '.join(PRESETS)}.")  # fmt: skip
@click.option("--tokenizer", default="cria", show_default=True,
              help="Tokenizer file, or a shipped model's.")  # fmt: skip
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
@click.option("--mix", help="Weight of each source of a folder of shards: books=0.3,web=0.7.")
@click.option("--document-mask", is_flag=True, help="Attention stays inside a document.")
def pretrain(
    texts: tuple[Path, ...],
    out: Path,
    resume: bool,
    recipe: str | None,
    model: str,
    tokenizer: str,
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

    TEXTS are files (.txt, .jsonl, either also as .zst), or one folder of token shards.

    The run's folder holds its config, log.jsonl, loss.png and checkpoints, each of which opens as
    a model. Ctrl-C saves and stops; --resume goes on to the identical losses.
    """
    with said_once():
        if resume:
            _only_out_is_given()
        if not resume and not texts:
            raise ValueError("no texts to train on; give at least one file")
        line = parallel
        parallel = check_started(parallel or (_own_layout(out) if resume else ""))
    if resume:
        _train(out, parallel if line else None, hang_timeout)
        return

    def prepare() -> None:
        if is_restarted(out):
            click.echo(f"started again: going on with {out}", err=True)
            return
        if out.exists():
            raise ValueError(f"{out} exists already; give --resume to go on with it")
        if recipe is not None:
            _prepare_recipe(out, recipe, texts, parallel)
        else:
            _prepare(out, config, texts, vocabulary, separator)
        mark_job(out)

    if recipe is None:
        from puna.parallel.layout import Layout, usual_micro_batch
        from puna.train.loop import Settings
        from puna.train.pretrain import PretrainConfig, check_machine

        with said_once():
            vocabulary = named_vocabulary(tokenizer)
            shape = dataclasses.replace(preset(model), vocab_size=len(vocabulary))
            if context_length is not None:
                shape = dataclasses.replace(shape, context_length=context_length)
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
                checkpoint_every=checkpoint_every,
            )
            check_machine(settings.device, settings.float8)
            if not guard:
                settings = dataclasses.replace(
                    settings, spike_deviations=0, max_skips=0, max_rollbacks=0
                )
            piece = micro_batch_size
            if piece is None or "*" in line:  # what is left may have smaller shares of a batch
                piece = usual_micro_batch(
                    Layout.parse(parallel), batch_size, schedule, at_most=piece
                )
            shards = str(texts[0].resolve()) if len(texts) == 1 and texts[0].is_dir() else None
            texts = () if shards else texts
            config = PretrainConfig(
                shape,
                settings,
                batch_size,
                piece,
                seed,
                held_out,
                mix=None if mix is None else _weights(mix),
                document_mask=document_mask,
                shards=shards,
            )
    if parallel:
        by_the_first(prepare, device, hang_timeout)
    else:
        prepare()
    _train(out, parallel or None, hang_timeout)


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
    context = click.get_current_context()
    given = [
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if ignored := sorted(set(given) - {"out", "resume", "parallel", "hang_timeout"}):
        names = ", ".join(name.replace("_", "-") for name in ignored)
        raise ValueError(f"a resumed run keeps its own config: leave out {names}")


def _prepare_recipe(out: Path, recipe: str, texts: tuple[Path, ...], parallel: str) -> None:
    """The corpus and the tokenizer of a recipe, then its run."""
    from puna.recipes import RECIPES
    from puna.train.pretrain import with_layout

    if len(texts) != 1 or not texts[0].is_dir():
        raise ValueError(f"--recipe {recipe} takes one folder, that of its sources")
    chosen = RECIPES[recipe]()
    config = with_layout(chosen.config(), parallel)
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(temporary) / "corpus.jsonl"
        click.echo("Building the corpus and its tokenizer", err=True)
        chosen.build_corpus(texts[0], corpus)
        _prepare(out, config, (corpus,), chosen.tokenizer(corpus), None)


def _prepare(
    out: Path,
    config: PretrainConfig,
    texts: tuple[Path, ...],
    vocabulary: Vocabulary,
    separator: str | None,
) -> None:
    from puna.train.pretrain import prepare

    with bar("Tokenizing", total=None) as advance:
        prepare(out, config, texts, vocabulary, separator=separator, on_document=advance)


def _train(out: Path, parallel: str | None, hang_timeout: float) -> None:
    from puna.parallel.place import leave
    from puna.train.checkpoints import checkpoint_path, steps_saved
    from puna.train.plot import plot_loss
    from puna.train.pretrain import check_machine, run_config
    from puna.train.pretrain import pretrain as run_pretrain

    with said_once():
        config = run_config(out, parallel)
        check_machine(config.settings.device, config.settings.float8)
    layout, steps = config.layout, config.settings.steps
    if layout.num_ranks > 1 and is_first():
        share = config.batch_size // layout.num_data_ranks
        click.echo(
            f"{layout.num_ranks} processes: {layout}; each batch's share is {share} windows, "
            f"{config.micro_batch_size} at once",
            err=True,
        )
    with said_by_one(), training_bar(steps, shown=is_first()) as (start, advance):
        finished = run_pretrain(
            out,
            parallel=parallel,
            hang_timeout=hang_timeout,
            on_start=start,
            on_record=advance,
            on_event=say_event,
        )
    leave()
    if not is_first():
        return
    plot_loss(out)
    newest = checkpoint_path(out, steps_saved(out)[-1])
    if not finished:
        click.echo(f"stopped at {newest.name}; go on with --out {out} --resume", err=True)
        raise click.Abort
    click.echo(f"trained: {newest}; losses in {out / 'log.jsonl'} and {out / 'loss.png'}", err=True)
    click.echo(f"try it: puna complete --model {newest}", err=True)
