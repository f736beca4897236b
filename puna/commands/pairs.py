"""What the commands of stages on pairs of answers have in common."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.models import lasting_name, locate
from puna.commands.progress import bar
from puna.commands.render import facts_table
from puna.commands.train_options import TrainOptions
from puna.data.preferences import FORMS
from puna.plan.layout import Layout, usual_batch

if TYPE_CHECKING:
    from puna.formats import Checkpoint
    from puna.train.preferences.pair_data import PairData
    from puna.train.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What was said of the pairs, by the names of the options."""

    data: tuple[Path, ...]
    model: str
    context_length: int | None
    epochs: float
    form: str | None
    held_out: int | None
    held_out_data: tuple[Path, ...]

    def check(self) -> None:
        """ValueError where there is nothing to read, or too much is said."""
        if not self.data:
            raise ValueError("no comparisons; give at least one file")
        if self.held_out is not None and self.held_out_data:
            raise ValueError("--held-out-data is evaluated on; leave out --held-out")

    def batch_size(self, options: TrainOptions, found: PairData, usual: int, layout: Layout) -> int:
        """What was said, or `usual_batch`; ValueError where there are fewer pairs."""
        size = options.batch_size
        if size is None:
            size = usual_batch(layout, len(found.trained), usual)
        if size > len(found.trained):
            raise ValueError(
                f"there are {len(found.trained):,} pairs to train on; a batch of {size:,} needs "
                "more: give a smaller --batch-size, or leave it out"
            )
        return size


def pair_options(function: Callable[..., None]) -> Callable[..., None]:
    """`DATA` and the options about it; the command gets them as one `pairs`."""
    names = [field.name for field in dataclasses.fields(PairOptions)]

    @functools.wraps(function)
    def command(**given: Any) -> None:
        function(pairs=PairOptions(**{name: given.pop(name) for name in names}), **given)

    for decorator in (
        click.option("--held-out-data", multiple=True, type=click.Path(path_type=Path),
                     metavar="FILE",
                     help="Evaluate on the pairs of this file instead; repeatable."),
        click.option("--held-out", type=click.IntRange(min=0), help="Pairs kept from training, to "
                     "evaluate on; whole prompts.  [default: a tenth, at most 256]"),
        click.option("--form", type=click.Choice(list(FORMS)),
                     help="Form of all files; by default each one's first record tells."),
        click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=1,
                     show_default=True, help="How often each pair is seen."),
        click.option("--context-length", type=int,
                     help="Tokens of a dialog, whose oldest turns go where it is longer; the "
                     "model's by default."),
        click.option("--model", "-m", default="cria", show_default=True, metavar="MODEL",
                     help="What to begin from: a file or folder in any format, a shipped model, or "
                     "a hub's."),
        click.argument("data", nargs=-1, type=click.Path(path_type=Path)),
    ):  # fmt: skip
        command = decorator(command)
    return command


def read_from(pairs: PairOptions, seed: int, **mix: Any) -> tuple[Checkpoint, str, PairData]:
    """The model to begin from, how a run remembers it, and the pairs; `mix` is for `read_pairs`."""
    from puna.train.preferences.pair_data import read_pairs
    from puna.train.starting import open_start

    path = locate(pairs.model)
    start = open_start(path)
    context = start.config.context_length
    length = context if pairs.context_length is None else pairs.context_length
    if not 2 <= length <= context:
        raise ValueError(f"a dialog of {length} tokens: the model's context has {context}")
    with bar("Encoding", total=None) as advance:
        found = read_pairs(
            pairs.data,
            start.tokenizer(),
            max_tokens=length,
            seed=seed,
            num_held_out=pairs.held_out,
            held_out_paths=pairs.held_out_data,
            form=pairs.form,
            on_pair=advance,
            **mix,
        )
    return start, lasting_name(pairs.model, path), found


def pair_facts(config: RunConfig, found: PairData) -> dict[str, str]:
    """The run as resolved, and what was read, for people."""
    settings, num_pairs = config.settings, len(found.trained)
    epochs = settings.steps * config.last_batch_size / num_pairs
    facts = {
        "pairs": f"{num_pairs:,}, {found.num_others:,} of them of other kinds; "
        f"{len(found.held_out):,} held out",
        "tokens": f"{len(found.trained.ids):,}",
        "steps": f"{settings.steps:,}, {settings.warmup_steps:,} of them warm-up; {epochs:.3g} "
        "epochs",
        "learning_rate": f"{settings.learning_rate:g}, cosine to {settings.final_fraction:.0%}",
        "batch": f"{config.last_batch_size:,} pairs, {config.micro_batch_size:,} at once",
        "layout": f"{config.layout}: {config.layout.num_ranks:,} processes on {settings.device}",
    }
    if lines := found.lines():
        facts["left out"] = "\n".join(lines)
    return facts


def show_run(config: RunConfig, found: PairData, as_json: bool, facts: dict[str, str]) -> None:
    """Prints the run as resolved."""
    if not as_json:
        facts_table("The run", facts)
        return
    values = {
        "run": config.to_dict(),
        "pairs": len(found.trained),
        "others": found.num_others,
        "held_out": len(found.held_out),
        "tokens": len(found.trained.ids),
        "counts": dict(found.counts),
    }
    click.echo(json.dumps(values, indent=2))
