"""`puna align`: the loop of Llama 2-Chat, version after version, out of one recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.options import json_option
from puna.commands.progress import bar
from puna.commands.training import say_event, training_bar

if TYPE_CHECKING:
    from puna.recipes.alignment.config import AlignConfig
    from puna.recipes.alignment.loop import Context, Done


@click.command()
@click.argument("recipe")
@click.option("--sources", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="For the recipe tiny: folder with factbook.jsonl (or .zst) and "
              "tinystories-sample.txt.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
              help="Folder of the alignment; one that was begun is gone on with.")  # fmt: skip
@click.option("--seed", type=int, help="In place of the recipe's.")
@click.option("--max-tokens", type=click.IntRange(min=1),
              help="Of an answer to a held-out prompt, not the recipe's or 96.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the versions and their stages; begin none.")
@json_option
def align(
    recipe: str,
    sources: Path | None,
    out: Path,
    seed: int | None,
    max_tokens: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Align a model: fine-tuning, reward models, rejection sampling, PPO, as RECIPE declares.

    RECIPE is a TOML file of a base model, data, and versions of stages; or tiny, which aligns the
    shipped base to tasks that a program can check. Each stage is done once: Ctrl-C saves and
    stops, and the same command goes on. FOLDER has a folder a stage, and report.html with scores,
    curves, win rates and answers.
    """
    from puna.recipes.alignment.loop import StoppedError, check, finished, run
    from puna.recipes.alignment.stages import STAGES

    config = _config(recipe, sources, out, {"seed": seed, "max_tokens": max_tokens})
    check(config, STAGES)
    if dry_run:
        _show_plan(config.to_dict(), as_json)
        return
    done: list[Done] = []
    try:
        for each in run(out, config, STAGES, _Terminal(), _measuring(config)):
            done.append(each)
            _write_report(out, config, done)
            _say(each)
    except StoppedError:
        _write_report(out, config, finished(out, config))
        click.echo(f"stopped; the same command goes on in {out}", err=True)
        raise click.Abort from None
    if as_json:
        stages: list[dict[str, Any]] = [
            {"version": each.version, "stage": each.name, "seconds": each.seconds} | each.figures
            for each in done
        ]
        click.echo(json.dumps({"model": done[-1].state.policy, "stages": stages}, indent=2))
    click.echo(f"aligned: {done[-1].state.policy}; report: {out / 'report.html'}", err=True)
    click.echo(f"try it: puna chat --model {done[-1].state.policy}", err=True)


def _config(
    recipe: str, sources: Path | None, out: Path, options: dict[str, int | None]
) -> AlignConfig:
    """The alignment that is asked for; options that are given count, not the recipe's."""
    from puna.recipes.alignment.config import read_align_config
    from puna.recipes.alignment.tiny import tiny

    if recipe == "tiny" and not Path(recipe).exists():
        if sources is None:
            raise ValueError("the recipe tiny makes its tasks: give --sources DIR")
        config = tiny(out.with_name(f"{out.name}-tasks"), sources, options["seed"] or 0)
    elif sources is not None:
        raise ValueError("--sources is for the recipe tiny; a file says itself where its data is")
    else:
        config = read_align_config(Path(recipe))
    given: dict[str, Any] = {name: each for name, each in options.items() if each is not None}
    return dataclasses.replace(config, **given)


def _measuring(
    config: AlignConfig,
) -> Callable[[Context, Path | None], dict[str, Any]]:
    """What measures a new model: its answers to the held-out prompts, where there are any."""
    from puna.recipes.alignment.measure import TEMPERATURES, measured, read_held_out
    from puna.recipes.alignment.scorers import known_scorers

    held_out = None if config.data.held_out is None else read_held_out(config.data.held_out)

    def measure(context: Context, before: Path | None) -> dict[str, Any]:
        if held_out is None:
            return {}
        with bar("Measuring", total=len(held_out.dialogs) * len(TEMPERATURES)) as advance:
            return measured(
                context.state.policy,
                held_out,
                known_scorers(context.state),
                context.folder,
                max_tokens=config.max_tokens,
                advance=advance,
                before=before,
            )

    return measure


def _write_report(out: Path, config: AlignConfig, done: list[Done]) -> None:
    from puna.formats.files import atomic_file
    from puna.recipes.alignment.report import report

    with atomic_file(out / "report.html", overwrite=True) as file:
        file.write(report(out, config, done).encode())


def _say(done: Done) -> None:
    gold = done.figures.get("gold")
    scored = f", gold {gold['sampled']['mean']:.3f}" if gold else ""
    click.echo(f"{done.version} {done.name}: done in {done.seconds:.0f} s{scored}", err=True)


def _show_plan(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    click.echo(f"base   {values['base']}")
    for name, value in values["data"].items():
        if value:
            click.echo(f"{name:<14} {value if isinstance(value, str) else ', '.join(value)}")
    for version in values["versions"]:
        click.echo(version["name"])
        for stage in version["stages"]:
            options = ", ".join(f"{k} {v}" for k, v in stage.items() if k != "kind")
            click.echo(f"  {stage['kind']:<22} {options}")


class _Terminal:
    """How stages tell of their work (`recipes.alignment.loop.Console`)."""

    @contextlib.contextmanager
    def training(self, title: str, run: Path, steps: int) -> Iterator[dict[str, Any]]:
        with training_bar(steps) as (start, advance, _):
            yield {"on_start": start, "on_record": advance, "on_event": say_event}

    @contextlib.contextmanager
    def counting(self, title: str, total: int | None) -> Iterator[Callable[[], None]]:
        with bar(title, total=total) as advance:
            yield advance

    def say(self, text: str) -> None:
        click.echo(f"[{time.strftime('%H:%M:%S')}] {text}", err=True)
