"""`puna eval`: what a model scores on benchmarks; below it, what is done with the results."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from puna.commands.lazy import Entry, LazyGroup
from puna.commands.options import F, json_option, model_options, together
from puna.evaluate.suites import SUITES, present
from puna.evaluate.wilson import Z_95

if TYPE_CHECKING:
    from puna.evaluate.report.collect import Cell
    from puna.evaluate.results import Results, Score

# What is done with results, and what is measured in other ways.
SUBCOMMANDS: dict[str, Entry] = {
    "judge": Entry(
        "puna.commands.eval_judge:judge_command", "A judge compares answers to dialogs."
    ),
    "safety": Entry("puna.commands.eval_safety:safety_command", "Toxicity, bias, truth, refusals."),
    "report": Entry("puna.commands.eval_report:report", "Results beside those of known models."),
    "compare": Entry("puna.commands.eval_compare:compare", "Is one of two models better?"),
    "contamination": Entry(
        "puna.commands.eval_contamination:contamination",
        "Questions that are in training text.",
    ),
}


def _choices(function: F) -> F:
    """What is asked, and how."""
    return together(
        click.option(
            "--suite", type=click.Choice(list(SUITES)),
            help="Benchmarks that go together.  [default: quick]",
        ),
        click.option(
            "--task", "tasks", multiple=True, metavar="NAME",
            help="A benchmark, instead of a suite; repeatable. --task list shows them.",
        ),
        click.option(
            "--data", type=click.Path(path_type=Path), metavar="DIR",
            help="Folder of the benchmarks' files; without it they come from the hub.",
        ),
        click.option(
            "--out", type=click.Path(path_type=Path), metavar="DIR",
            help="Folder of the results; an interrupted evaluation goes on there.  "
            "[default: eval-SUITE-MODEL]",
        ),
        click.option(
            "--shots", type=click.IntRange(min=0), metavar="N",
            help="Answered questions before each, where a task has any.  [default: the task's]",
        ),
        click.option(
            "--shared-shots", is_flag=True,
            help="The same shots for all questions, which is faster; lm-eval draws each its own.",
        ),
        click.option(
            "--limit", type=click.IntRange(min=1), metavar="N",
            help="Only so many questions of each task, drawn evenly from its groups.",
        ),
        click.option(
            "--seed", type=int, default=1234, show_default=True,
            help="Draws shots and samples of questions; 1234 is lm-eval's.",
        ),
        click.option("--chat", is_flag=True, help="Ask in dialogs, in Llama 2's format."),
        click.option(
            "--max-length", type=click.IntRange(min=16), metavar="N",
            help="Tokens that the model sees at once.  [default: its context]",
        ),
    )(function)  # fmt: skip


@click.command("eval", cls=LazyGroup, table=SUBCOMMANDS, invoke_without_command=True)
@model_options()
@_choices
@click.option("--report", "reported", is_flag=True, help="Write a report too (puna eval report).")
@json_option
@click.pass_context
def eval_(
    ctx: click.Context,
    model: str,
    tokenizer: Path | None,
    device: str,
    dtype: str,
    kv_dtype: str,
    suite: str | None,
    tasks: tuple[str, ...],
    data: Path | None,
    out: Path | None,
    shots: int | None,
    shared_shots: bool,
    limit: int | None,
    seed: int,
    chat: bool,
    max_length: int | None,
    reported: bool,
    as_json: bool,
) -> None:
    """Score a model on benchmarks, as EleutherAI's lm-eval defines them.

    Writes DIR/results.json and every question with the model's answer, and prints each figure
    with its 95 % interval.
    """
    if ctx.invoked_subcommand is not None:
        _check_no_options(ctx)
        return
    if "list" in tasks:
        _list_tasks(as_json)
        return
    if suite is not None and tasks:
        raise ValueError("--suite and --task exclude each other; give one")
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("this needs lm-eval, which is not installed: pip install 'puna[eval]'")

    from puna.commands.models import load, resolve
    from puna.commands.producers import weights_fingerprint
    from puna.evaluate.harness.running import Settings, run
    from puna.evaluate.tasks.table import task_of

    chosen = SUITES[suite or "quick"]
    names, left_out = (tasks, ()) if tasks else present(chosen, data)
    for name in names:
        task_of(name).check()
    for name in left_out:
        click.echo(f"left out: {task_of(name).title}, {_where(data)} has no rows of it", err=True)
    checkpoint = resolve(model, tokenizer)
    settings = Settings(
        model=model,
        weights=weights_fingerprint(checkpoint),
        tokenizer=None if tokenizer is None else str(tokenizer),
        suite="" if tasks else suite or "quick",
        tasks=tuple(dict.fromkeys(names)),
        data=None if data is None else str(data),
        shots=shots,
        questions=limit if tasks or limit is not None else chosen.questions,
        seed=seed,
        shared_shots=shared_shots,
        left_out=left_out,
        chat=chat,
        max_length=max_length,
        dtype=dtype,
        kv_dtype=kv_dtype,
    )
    folder = out or Path(f"eval-{settings.suite or '-'.join(names)}-{Path(model).stem}")
    llm = load(checkpoint, device=device, dtype=dtype, kv_dtype=kv_dtype)
    results = run(settings, llm, folder, _watch)
    if reported:
        from puna.commands.eval_report import written_report

        written_report([folder], folder)
    if as_json:
        table = {title: dataclasses.asdict(cell) for title, cell in _table(results).items()}
        click.echo(json.dumps(dataclasses.asdict(results) | {"table": table}))
    else:
        _show(results, folder)


def _check_no_options(ctx: click.Context) -> None:
    """A subcommand has options of its own: those before its name would mean nothing."""
    for option in ctx.command.params:
        if ctx.get_parameter_source(str(option.name)) is click.core.ParameterSource.COMMANDLINE:
            name = ctx.invoked_subcommand
            raise click.UsageError(f"{option.opts[0]} stands before {name}, which does not see it")


@contextlib.contextmanager
def _watch(title: str, count: int) -> Iterator[Callable[[], None]]:
    from puna.commands.progress import bar

    with bar(title, count) as advance:
        yield advance


def _list_tasks(as_json: bool) -> None:
    from puna.evaluate.tasks.table import TASKS

    rows = [
        {"task": task.name, "title": task.title, "shots": task.shots, "metric": task.metric}
        for task in TASKS.values()
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max(len(task.name) for task in TASKS.values())
    for row in rows:
        click.echo(f"{row['task']:{width}}  {row['shots']:2}-shot  {row['metric']}  {row['title']}")


def _show(results: Results, folder: Path) -> None:
    from puna.evaluate.means import mean_of_groups

    table = [(title, cell.score, _remark(cell)) for title, cell in _table(results).items()]
    titles = [*(task.title for task in results.tasks), *(row[0] for row in table)]
    width, metric = max(map(len, titles)), max(len(task.metric) for task in results.tasks)
    for task in results.tasks:
        click.echo(
            f"{task.title:{width}}  {task.metric:{metric}}  {_figure(task.score)}  "
            f"({task.shots}-shot, {task.score.questions:,} questions)"
        )
    if table:
        click.echo(f"\n{SUITES[results.suite].title}")
    elif len(results.tasks) > 1:
        table = [("mean", mean_of_groups([task.score for task in results.tasks]), "")]
    for title, score, remark in table:
        click.echo(f"{title:{width}}  {'':{metric}}  {_figure(score)}  {remark}".rstrip())
    notes: dict[str, list[str]] = {}
    for task in results.tasks:
        for note in task.notes:
            notes.setdefault(note, []).append(task.title)
    for note, titles in notes.items():
        whose = "all" if len(titles) == len(results.tasks) else ", ".join(titles)
        click.echo(f"note ({whose}): {note}", err=True)
    click.echo(f"wrote {folder} ({results.seconds:.0f} s in all)", err=True)


def _table(results: Results) -> dict[str, Cell]:
    """The rows that a suite's source has."""
    from puna.evaluate.reference import BENCHMARKS
    from puna.evaluate.report.collect import cell_of

    source = SUITES[results.suite].table if results.suite else None
    rows = {each.title: cell_of(results, each) for each in BENCHMARKS if each.source == source}
    return {title: cell for title, cell in rows.items() if cell is not None}


def _remark(cell: Cell) -> str:
    return f"(without {', '.join(cell.missing)})" if cell.missing else ""


def _figure(score: Score) -> str:
    return f"{100 * score.value:5.1f} ± {100 * Z_95 * score.stderr:4.1f}"


def _where(data: Path | None) -> str:
    return "the hub" if data is None else str(data)
