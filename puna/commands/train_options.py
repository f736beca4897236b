"""Options that the commands of all training stages have, with each stage's own defaults."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from puna.plan.layout import SCHEDULES, Layout, usual_micro_batch

if TYPE_CHECKING:
    from puna.train.loop import Settings

# What may be said of a run that goes on; the rest is in its config.
ON_RESUME = frozenset({
    "out", "resume", "parallel", "micro_batch_size", "tensorboard", "wandb", "profile",
    "hang_timeout",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What was said of a run, by the names of the options; a `batch_size` of None is chosen."""

    out: Path
    resume: bool
    dry_run: bool
    batch_size: int | None
    micro_batch_size: int | None
    learning_rate: float
    warmup_steps: int | None
    weight_decay: float
    grad_clip: float
    dtype: str
    compile: bool
    float8: bool
    device: str
    seed: int
    eval_every: int
    statistics_every: int
    tensorboard: bool
    wandb: str | None
    profile: str | None
    checkpoint_every: int
    keep_checkpoints: int
    parallel: str
    hang_timeout: float
    schedule: str
    recompute: str
    loss_chunk: int
    guard: bool

    @property
    def sinks(self) -> dict[str, str]:
        """Where records go besides the log, for `train.sinks`."""
        asked = {"tensorboard": ""} if self.tensorboard else {}
        return asked if self.wandb is None else asked | {"wandb": self.wandb}

    def settings(self, steps: int, parallel: str) -> Settings:
        """How a run of so many steps optimises, in a layout whose `*` is a number."""
        from puna.train.loop import Settings

        shared = {field.name for field in dataclasses.fields(Settings)}
        said = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in shared
        }
        warmup = min(2000, steps // 10) if self.warmup_steps is None else self.warmup_steps
        said |= {"warmup_steps": warmup, "parallel": parallel}
        return self.guarded(Settings(steps=steps, **said))

    def guarded(self, settings: Settings) -> Settings:
        """The same, without the guard where --no-guard says so."""
        if self.guard:
            return settings
        return dataclasses.replace(settings, spike_deviations=0, max_skips=0, max_rollbacks=0)

    def piece(self, batch_size: int, parallel: str, *, usual: int | None = None) -> int:
        """How many windows a process computes at once; `usual` where nothing is said."""
        # What a * leaves may have smaller shares of a batch.
        if self.micro_batch_size is not None and "*" not in self.parallel:
            return self.micro_batch_size
        layout, at_most = Layout.parse(parallel), self.micro_batch_size or usual
        return usual_micro_batch(layout, batch_size, self.schedule, at_most=at_most)


hang_timeout_option = click.option(
    "--hang-timeout", type=click.FloatRange(min=0), default=300, show_default=True,
    help="Seconds a process may stand still before the others name it and end; six times as long "
    "where it loads, compiles, samples, evaluates or saves. 0: for ever.",
)  # fmt: skip


def given_options() -> dict[str, Any]:
    """The options of the command line, by name."""
    context = click.get_current_context()
    return {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _needed_to_train(context: click.Context, param: click.Parameter, out: Path | None) -> Path:
    """The run's folder; only --dry-run, and what trains nothing, does without one."""
    if out is None and not context.params["dry_run"] and not context.params.get("asked"):
        raise click.MissingParameter(ctx=context, param=param)
    return out or Path()


def train_options(
    *, batch_size: int | None, learning_rate: float, items: str = "Windows", usual: int = 64
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options with a stage's defaults; its command gets them as one `options`.

    A batch is of `items`; with a `batch_size` of None the command takes `usual`, or all there are.
    """
    decorators = _options(batch_size, learning_rate, items, usual)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        names = [field.name for field in dataclasses.fields(TrainOptions)]

        @functools.wraps(function)
        def command(**given: Any) -> None:
            options = TrainOptions(**{name: given.pop(name) for name in names})
            function(options=options, **given)

        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _options(
    batch_size: int | None, learning_rate: float, items: str, usual: int
) -> list[Callable[..., Any]]:
    return [
        click.option("--out", type=click.Path(path_type=Path), callback=_needed_to_train,
                     help="Folder of the run."),
        click.option("--resume", is_flag=True, help="Go on with the run in --out."),
        click.option("--dry-run", is_flag=True, is_eager=True,
                     help="Print the run as resolved, and what it takes; write nothing."),
        click.option("--batch-size", type=int, default=batch_size,
                     show_default=batch_size is not None or f"{usual}, or all that there are",
                     help=f"{items} a step."),
        click.option("--micro-batch-size", type=int,
                     help=f"{items} at once; the gradient accumulates over the batch."),
        click.option("--learning-rate", type=float, default=learning_rate, show_default=True,
                     help="Peak."),
        click.option("--warmup-steps", type=int,
                     help="A tenth of the steps, 2000 at most, by default."),
        click.option("--weight-decay", type=float, default=0.1, show_default=True),
        click.option("--grad-clip", type=float, default=1.0, show_default=True),
        click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16",
                     show_default=True),
        click.option("--compile/--no-compile", default=False, show_default=True,
                     help="torch.compile."),
        click.option("--float8/--no-float8", default=False, show_default=True,
                     help="Multiply in float8; needs torchao and a recent NVIDIA GPU."),
        click.option("--device", default="cpu", show_default=True),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--eval-every", type=int, default=0, show_default=True,
                     help="Steps; 0: at the end."),
        click.option("--statistics-every", type=int, default=0, show_default=True,
                     help="Steps between norms of each layer; 0: none."),
        click.option("--tensorboard", is_flag=True,
                     help="Log to TensorBoard, in the run's folder, too."),
        click.option("--wandb", is_flag=False, flag_value="puna", metavar="[PROJECT]",
                     help="Log to Weights & Biases too."),
        click.option("--profile", metavar="STEP[:COUNT]", help="Steps to profile."),
        click.option("--checkpoint-every", type=int, default=200, show_default=True,
                     help="Steps."),
        click.option("--keep-checkpoints", type=int, default=2, show_default=True,
                     help="How many of the newest stay."),
        click.option("--parallel", default="", help="How torchrun's processes share the work: "
                     "ways of dp, fsdp, tp, cp and pp, such as 'fsdp=2 tp=2'; a * takes the rest."),
        hang_timeout_option,
        click.option("--schedule", type=click.Choice(list(SCHEDULES)), default="1f1b",
                     show_default=True, help="In what order a pipeline takes the pieces of a "
                     "batch; interleaved: two stages a process."),
        click.option("--recompute", type=click.Choice(["none", "selective", "full"]),
                     default="none", show_default=True,
                     help="What the backward pass computes anew."),
        click.option("--loss-chunk", type=int, default=0, show_default=True,
                     help="Tokens whose logits exist at once; 0: all of a piece."),
        click.option("--guard/--no-guard", default=True, show_default=True,
                     help="Skip batches whose loss is no number or a spike, and go back to the "
                     "last checkpoint where they keep coming; else end."),
    ]  # fmt: skip
