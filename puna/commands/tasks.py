"""`puna tasks`: instructions whose answers a program checks, and how well a model does them."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.options import json_option, model_options

if TYPE_CHECKING:
    from puna.recipes.tasks.task import Task

_AT_ONCE = 64  # prompts in one call of the engine, between two moves of the bar


@click.group()
def tasks() -> None:
    """Instructions whose answers a program can check: make them, score a model on them."""


@tasks.command()
@click.option("--sources", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="Folder with factbook.jsonl (or .zst) and tinystories-sample.txt.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
              help="Folder of the tasks.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def build(sources: Path, out: Path, seed: int, as_json: bool) -> None:
    """Write the tasks into a folder.

    sft.jsonl to learn from, prompts.jsonl for reinforcement (ppo_prompts.jsonl: those of them that
    PPO answers), held_out.jsonl to measure on, preferences.jsonl for reward models, red_team.jsonl
    for safety; questions.jsonl and held_out_questions.jsonl for Ghost Attention. No question is in
    two of sft, prompts and held_out.
    """
    from puna.recipes.tasks.build import build as build_tasks

    counts = build_tasks(out, sources, seed=seed)
    if as_json:
        click.echo(json.dumps({"folder": str(out), "seed": seed, "lines": counts}))
        return
    for name, count in counts.items():
        click.echo(f"{count:6,} lines  {out / name}.jsonl")


@tasks.command()
@click.argument("file", type=click.Path(path_type=Path))
@model_options()
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=100, show_default=True,
              help="Of an answer.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first ones.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Write each answer with its score, as JSON lines.")  # fmt: skip
@json_option
def score(
    file: Path, model: str, tokenizer: Path | None, device: str, dtype: str, kv_dtype: str,
    temperature: float, max_tokens: int, seed: int, limit: int | None, out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Score a model's answers to the tasks of FILE (held_out.jsonl), by kind.

    gold is the mean part of the requirements that is met, passed the share of answers that meet
    all, with a 95 % interval (Wilson).
    """
    from puna.formats.files import atomic_file
    from puna.recipes.tasks.report import rows, safety
    from puna.recipes.tasks.task import lines, read_tasks

    chosen = read_tasks(file)[:limit]
    how = _sampling(temperature, max_tokens, seed, 1)
    # Refused before anything is answered where there is such a file.
    with contextlib.nullcontext() if out is None else atomic_file(out) as written:
        found = _answers(chosen, how, model, tokenizer, device, dtype, kv_dtype)
        answers = [each[0] for each in found]
        if written is not None:
            told = [
                {"id": t.id, "prompt": t.messages[-1].content, "answer": a, "gold": t.check(a)}
                for t, a in zip(chosen, answers, strict=True)
            ]
            written.write(lines(told))
    _show(model, rows(chosen, answers), safety(chosen, answers), as_json=as_json)


@tasks.command()
@click.argument("file", type=click.Path(path_type=Path))
@model_options()
@click.option("--samples", type=click.IntRange(min=2), default=4, show_default=True,
              help="Answers to each prompt.")  # fmt: skip
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 is greedy.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=100, show_default=True,
              help="Of an answer.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE",
              help="The comparisons, JSON lines.")  # fmt: skip
@json_option
def compare(
    file: Path, model: str, tokenizer: Path | None, device: str, dtype: str, kv_dtype: str,
    samples: int, temperature: float, max_tokens: int, seed: int, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Let a model answer the tasks of FILE several times; write which are better.

    The best answer beside the worst, rated by the gap of their gold scores: what one who knows the
    truth would have picked. Prompts with answers that are all the same give none.
    """
    from puna.formats.files import atomic_file
    from puna.recipes.tasks.pairs import sampled
    from puna.recipes.tasks.task import lines, read_tasks

    chosen = read_tasks(file)
    generator = random.Random(seed)
    with atomic_file(out) as written:
        how = _sampling(temperature, max_tokens, seed, samples)
        answers = _answers(chosen, how, model, tokenizer, device, dtype, kv_dtype)
        found = [sampled(t, each, generator) for t, each in zip(chosen, answers, strict=True)]
        pairs = [each for each in found if each is not None]
        if not pairs:
            raise ValueError(
                f"no prompt of {file} gave a pair, the answers to each being the same or as good; "
                "raise --samples or --temperature"
            )
        written.write(lines(pairs))
    counted = {"prompts": len(chosen), "pairs": len(pairs)}
    click.echo(
        json.dumps(counted)
        if as_json
        else f"{len(pairs):,} pairs from {len(chosen):,} prompts in {out}"
    )


def _sampling(temperature: float, max_tokens: int, seed: int, samples: int) -> dict[str, Any]:
    return {
        "temperature": temperature, "top_p": 1.0, "max_tokens": max_tokens, "seed": seed,
        "n": samples,
    }  # fmt: skip


def _answers(
    chosen: Sequence[Task], how: dict[str, Any], model: str, tokenizer: Path | None, device: str,
    dtype: str, kv_dtype: str,
) -> list[list[str]]:  # fmt: skip
    """The answers to each task, each drawn with a seed of its own."""
    from puna.commands.models import load, resolve
    from puna.commands.progress import bar
    from puna.engine.params import SamplingParams

    SamplingParams(**how)  # refused before the model is opened
    llm = load(resolve(model, tokenizer), device=device, dtype=dtype, kv_dtype=kv_dtype)
    answers: list[list[str]] = []
    with bar("Answering", len(chosen)) as advance:
        for at in range(0, len(chosen), _AT_ONCE):
            group = chosen[at : at + _AT_ONCE]
            params = [
                SamplingParams(**how | {"seed": how["seed"] * 1_000_003 + at + number})
                for number in range(len(group))
            ]
            for result in llm.chat([list(task.messages) for task in group], params):
                answers.append([output.text for output in result.outputs])
                advance()
    return answers


def _show(model: str, rows: Sequence[Any], rates: Sequence[Any], *, as_json: bool) -> None:
    if as_json:
        told = {"model": model, "rows": [asdict(row) for row in rows]}
        click.echo(json.dumps(told | {"safety": [asdict(rate) for rate in rates]}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("kind", "subjects"):
        table.add_column(title)
    for title in ("tasks", "gold", "passed", "95 %"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        interval = f"{row.low:.1%} - {row.high:.1%}"
        table.add_row(
            row.kind, row.subjects, str(row.count), f"{row.gold:.3f}", f"{row.passed:.1%}", interval
        )
    console = Console(highlight=False)
    console.print(table)
    for rate in rates:
        console.print(
            f"{rate.name}: {rate.rate:.1%} of {rate.count} ({rate.low:.1%} - {rate.high:.1%})"
        )
