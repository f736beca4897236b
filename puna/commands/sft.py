"""`puna sft`: teaches a model to answer, from dialogs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.lora_options import lora_options
from puna.commands.models import lasting_name, locate
from puna.commands.options import json_option
from puna.commands.progress import bar
from puna.commands.ranks import is_first, said_once
from puna.commands.render import facts_table
from puna.commands.train_options import TrainOptions, train_options
from puna.commands.train_run import train_run
from puna.plan.layout import Layout, usual_batch

if TYPE_CHECKING:
    from puna.lora import LoRASettings
    from puna.tokenizer import Vocabulary
    from puna.train.sft import Data, SFTConfig

_BATCH = 64  # windows; the paper's
_PIECE = 8  # windows at once; *ours*


@click.command()
@click.argument("data", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model", "-m", default="cria", show_default=True, metavar="MODEL",
              help="What to begin from: a file or folder in any format, a shipped model, or a "
              "hub's.")  # fmt: skip
@click.option("--context-length", type=int, help="Tokens of a window; the model's by default.")
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=2,
              show_default=True, help="How often each dialog is seen.")  # fmt: skip
@click.option("--too-long", type=click.Choice(["skip", "drop-turns"]), default="skip",
              show_default=True, help="What happens to a dialog longer than a window; drop-turns: "
              "it loses its oldest.")  # fmt: skip
@click.option("--held-out", type=click.IntRange(min=0), help="Dialogs kept from training, to "
              "evaluate on.  [default: a twentieth, at most 64]")  # fmt: skip
@click.option("--held-out-data", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Evaluate on the dialogs of this file instead; repeatable.")  # fmt: skip
@lora_options
@json_option
@train_options(batch_size=None, learning_rate=2e-5)
def sft(
    options: TrainOptions,
    data: tuple[Path, ...],
    model: str,
    context_length: int | None,
    epochs: float,
    too_long: str,
    held_out: int | None,
    held_out_data: tuple[Path, ...],
    lora: LoRASettings | None,
    as_json: bool,
) -> None:
    """Fine-tune a model on the answers of DATA, with Llama 2's schedule.

    DATA are files of dialogs or instructions (.jsonl or .json, either also as .zst): messages,
    ShareGPT, Alpaca, P3; a file's first record tells which.

    The run's folder is like that of puna pretrain; its checkpoints chat. Ctrl-C saves and stops;
    --resume goes on to the identical losses, with another --parallel or --micro-batch-size if
    asked. --json is for --dry-run.
    """
    from puna.train.schedule import steps_for
    from puna.train.sft import SFTConfig, num_windows, prepare, read_data
    from puna.train.sft import sft as train
    from puna.train.starting import open_start

    run = train_run(options, SFTConfig, train, "puna chat")
    if options.resume:
        run.resume()
        return
    with said_once():
        if not data:
            raise ValueError("no dialogs to train on; give at least one file")
        if held_out is not None and held_out_data:
            raise ValueError("--held-out-data is evaluated on; leave out --held-out")

    def resolved() -> tuple[SFTConfig, Data, Vocabulary]:
        path = locate(model)
        start = open_start(path)
        start.check_speaks()
        length = start.config.context_length if context_length is None else context_length
        with bar("Encoding", total=None) as advance:
            found = read_data(
                data,
                start.tokenizer(),
                context_length=length,
                seed=options.seed,
                num_held_out=held_out,
                held_out_paths=held_out_data,
                too_long=too_long,
                on_dialog=advance,
            )
        assert start.vocabulary is not None  # open_start saw to it
        windows = num_windows(found, length)
        batch_size = options.batch_size
        if batch_size is None:
            batch_size = usual_batch(Layout.parse(run.parallel), windows, _BATCH)
        if batch_size > windows:
            raise ValueError(
                f"the dialogs fill {windows} windows of {length} tokens; a batch of {batch_size} "
                "needs more: give a smaller --batch-size, or leave it out"
            )
        config = SFTConfig(
            start.config,
            options.settings(steps_for(epochs, windows, batch_size), run.parallel),
            batch_size,
            options.piece(batch_size, run.parallel, usual=_PIECE),
            options.seed,
            context_length=length,
            start=lasting_name(model, path),
            lora=lora,
        )
        return config, found, start.vocabulary

    def prepare_run() -> None:
        config, found, vocabulary = resolved()
        for line in found.skipped.lines():
            click.echo(f"note: {line}", err=True)
        prepare(options.out, config, found, vocabulary)

    if not options.dry_run:
        run.start(prepare_run)
    elif is_first():
        config, found, _ = resolved()
        _show(config, found, num_windows(found, config.context_length), as_json)


def _show(config: SFTConfig, found: Data, windows: int, as_json: bool) -> None:
    """The run as resolved, and what was read."""
    trained, settings = found.trained, config.settings
    if as_json:
        values: dict[str, Any] = {
            "run": config.to_dict(),
            "dialogs": len(trained),
            "held_out": len(found.held_out),
            "tokens": len(trained.ids),
            "learned_tokens": int(trained.learned.sum()),
            "windows": windows,
            "skipped": dict(found.skipped.counts),
        }
        click.echo(json.dumps(values, indent=2))
        return
    learned, room = int(trained.learned.sum()), windows * config.context_length
    epochs = settings.steps * config.last_batch_size / windows
    facts = {
        "model": f"{config.start}, {config.model.num_parameters:,} parameters",
        "dialogs": f"{len(trained):,}, and {len(found.held_out):,} held out",
        "tokens": f"{len(trained.ids):,}, {learned:,} of them learned",
        "windows": f"{windows:,} of {config.context_length:,}, "
        f"{(len(trained.ids) - len(trained)) / room:.1%} full",
        "steps": f"{settings.steps:,}, {settings.warmup_steps:,} of them warm-up; {epochs:.3g} "
        "epochs",
        "learning_rate": f"{settings.learning_rate:g}, cosine to {settings.final_fraction:.0%}",
        "batch": f"{config.last_batch_size:,} windows, {config.micro_batch_size:,} at once",
        "layout": f"{config.layout}: {config.layout.num_ranks:,} processes on {settings.device}",
    }
    if config.lora is not None:
        pairs, targets = config.lora, ",".join(config.lora.targets)
        facts["lora"] = f"rank {pairs.rank}, alpha {pairs.alpha:g}, {targets}, base {pairs.base}"
    if lines := found.skipped.lines():
        facts["left out"] = "\n".join(lines)
    facts_table("The run", facts)
