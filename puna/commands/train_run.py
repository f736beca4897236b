"""What the command of any training stage does with a run: begin it, go on with it, tell of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
from puna.commands.train_options import ON_RESUME, TrainOptions, given_options
from puna.commands.training import told

if TYPE_CHECKING:
    from puna.train.loop import Settings
    from puna.train.profile import Window
    from puna.train.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class TrainRun:
    """A run of one stage as its command was given it.

    `kind` is the stage's config, `train` its function (`run, parallel=, hang_timeout=, ...`),
    `try_it` the command that shows what came of it; `draw` makes pictures of the run. `parallel`
    has numbers for its `*`.
    """

    options: TrainOptions
    kind: type[RunConfig]
    train: Callable[..., bool]
    try_it: str
    parallel: str
    window: Window | None
    draw: Callable[[Path], object] | None = None

    def resume(self) -> None:
        """Goes on with the run in --out, with another batch, or pieces of it, where asked."""
        given = given_options()
        if {"batch_size", "micro_batch_size"} & set(given):
            self._change_batch(given.get("batch_size"), given.get("micro_batch_size"))
        self._train(self.parallel or None)

    def start(self, prepare: Callable[[], None], settings: Settings | None = None) -> None:
        """Has the first process `prepare` the run in --out, which must not be there, and trains:
        where and how the options say, or the `settings` of a recipe.

        Where torchrun started its processes anew, it goes on with what they began. Of a run whose
        data are bad nothing is left.
        """
        from puna.formats.run_folder import steps_saved
        from puna.train.running import BadDataError, check_machine

        out, said = self.options.out, settings or self.options
        parallel = self.parallel if settings is None else settings.parallel

        with said_once():
            check_started(parallel)
            check_machine(said.device, said.float8)
        by_the_first(partial(begin, out, prepare), parallel, said.device, self.options.hang_timeout)
        try:
            self._train(parallel or None)
        except BadDataError:
            if not steps_saved(out):
                shutil.rmtree(out, ignore_errors=True)
            raise

    def _change_batch(self, batch_size: int | None, micro_batch_size: int | None) -> None:
        from puna.train.run_config import change_batch_size, read_config

        out, parallel = self.options.out, self.parallel or None

        def change() -> None:
            change_batch_size(out, self.kind, batch_size, micro_batch_size, parallel=parallel)

        with said_once():
            settings = read_config(out, self.kind, parallel).settings
        by_the_first(change, settings.parallel, settings.device, self.options.hang_timeout)

    def _train(self, parallel: str | None) -> None:
        from puna.formats.run_folder import checkpoint_path, steps_saved
        from puna.parallel.place import leave
        from puna.train.plot import plot_loss, plot_statistics
        from puna.train.run_config import read_config
        from puna.train.running import check_machine
        from puna.train.sinks import chosen, opened

        out = self.options.out
        with said_once():
            config = read_config(out, self.kind, parallel)
            settings = config.settings
            check_machine(settings.device, settings.float8)
            if self.window:
                self.window.check(settings.steps)
        say_layout(config)
        sinks = opened(out, chosen(out, self.options.sinks) if is_first() else {})
        shown = told(settings.steps, sinks, shown=is_first())
        with said_by_one(), shown as (telling, check):
            finished = self.train(
                out,
                parallel=parallel,
                hang_timeout=self.options.hang_timeout,
                profile=self.window,
                on_check=check,
                **telling,
            )
        leave()
        if not is_first():
            return
        (self.draw or plot_loss)(out)
        if picture := plot_statistics(out):
            click.echo(f"statistics of the layers: {picture}", err=True)
        if self.window:
            _say_profile(out / "profile", self.window)
        newest = checkpoint_path(out, steps_saved(out)[-1])
        if not finished:
            click.echo(f"stopped at {newest.name}; go on with --out {out} --resume", err=True)
            raise click.Abort
        click.echo(
            f"trained: {newest}; losses in {out / 'log.jsonl'} and {out / 'loss.png'}", err=True
        )
        click.echo(f"try it: {self.try_it} {config.opened_by(newest)}", err=True)


def begin(out: Path, prepare: Callable[[], None]) -> None:
    """Has a new run prepared in `out`, unless this job of torchrun's began it and starts again."""
    if is_restarted(out):
        click.echo(f"started again: going on with {out}", err=True)
        return
    if out.exists():
        raise ValueError(f"{out} exists already; give --resume to go on with it")
    prepare()
    mark_job(out)


def train_run(
    options: TrainOptions,
    kind: type[RunConfig],
    train: Callable[..., bool],
    try_it: str,
    *,
    on_resume: frozenset[str] = ON_RESUME,
    draw: Callable[[Path], object] | None = None,
) -> TrainRun:
    """Checks what the options say of where and how to run, before anything is read.

    `on_resume` are the options that may come with --resume.
    """
    from puna.train import sinks
    from puna.train.profile import Window
    from puna.train.run_config import read_config

    with said_once():
        parallel = starred(options.parallel)
        if options.out != Path():
            sinks.chosen(options.out, options.sinks)
        window = None if options.profile is None else Window.parse(options.profile)
        if options.resume:
            only_given(on_resume)
            check_started(parallel or read_config(options.out, kind).settings.parallel)
    return TrainRun(options, kind, train, try_it, parallel, window, draw)


def only_given(on_resume: frozenset[str]) -> None:
    """ValueError if --resume came with options that the run's own config decides."""
    if ignored := sorted(set(given_options()) - on_resume):
        names = ", ".join(name.replace("_", "-") for name in ignored)
        raise ValueError(f"a resumed run keeps its own config: leave out {names}")


def say_layout(config: RunConfig) -> None:
    """How several processes share the work, in a line."""
    layout = config.layout
    if layout.num_ranks > 1 and is_first():
        share = config.last_batch_size // layout.num_data_ranks
        click.echo(
            f"{layout.num_ranks} processes: {layout}; each batch's share is {share} of "
            f"{config.last_batch_size}, {config.micro_batch_size} at once",
            err=True,
        )


def _say_profile(folder: Path, window: Window) -> None:
    if found := sorted(folder.glob("*.txt"), key=lambda path: path.stat().st_mtime):
        click.echo(f"profile: {found[-1]}, and the trace beside it", err=True)
    else:
        click.echo(f"no profile: the run was past step {window.last}, or not yet there", err=True)
