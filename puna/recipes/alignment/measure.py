"""How good a version is: its answers to the held-out prompts, their gold scores, and who wins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.chat import Message
from puna.data.prompts import read_prompts
from puna.data.text import records
from puna.engine.llm import LLM
from puna.evaluate.wilson import wilson
from puna.formats.files import atomic_file
from puna.recipes.alignment.config import Values
from puna.recipes.tasks.report import rows, safety
from puna.recipes.tasks.task import Task, gold, read_tasks
from puna.train.sampling import Dialog, Sampler, answered, engine_sampler, seed_of

ANSWERS = "answers.jsonl"
_CHUNK = 32  # prompts a tick of the bar

# How answers are drawn to be measured: as the model would rather say it, and as it is trained to.
TEMPERATURES = {"greedy": 0.0, "sampled": 1.0}

# Whole dialogs -> raw rewards, by the name of the reward model.
Scorers = dict[str, Callable[[Sequence[Dialog]], list[float]]]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Prompts, and what of them is a task: all, or none."""

    dialogs: tuple[tuple[Message, ...], ...]
    tasks: tuple[Task, ...] = ()


def read_held_out(path: Path) -> HeldOut:
    """Held-out prompts; those of `puna tasks` have a gold score. ValueError where it is neither."""
    first = next(iter(records(path)), None)
    if isinstance(first, dict) and "requirements" in first:
        tasks = tuple(read_tasks(path))
        return HeldOut(tuple(task.messages for task in tasks), tasks)
    return HeldOut(tuple(prompt.messages for prompt in read_prompts(path)))


def measured(
    model: str,
    held_out: HeldOut,
    scorers: Scorers,
    folder: Path,
    *,
    max_tokens: int,
    advance: Callable[[], None],
    before: Path | None = None,
) -> Values:
    """Answers the prompts, keeps the answers in `folder`, and gives the figures of them.

    `before` is the folder of the model before, whose answers these are compared with.
    """
    sampler = engine_sampler(LLM(model), max_tokens=max_tokens)
    figures: Values = {}
    answers = {
        name: _answers(sampler, held_out.dialogs, temperature, advance)
        for name, temperature in TEMPERATURES.items()
    }
    _write(folder / ANSWERS, held_out.dialogs, answers)
    if held_out.tasks:
        figures["gold"] = {name: _gold(held_out.tasks, texts) for name, texts in answers.items()}
    for name, scorer in scorers.items():
        dialogs = [
            answered(dialog, text)
            for dialog, text in zip(held_out.dialogs, answers["sampled"], strict=True)
        ]
        figures.setdefault("rewards", {})[name] = _mean(scorer(dialogs))
    if before is not None and (before / ANSWERS).is_file():
        old = read_answers(before)
        figures["wins"] = {
            name: wins(*_compared(held_out, old[name], texts, scorers))
            for name, texts in answers.items()
        }
    return figures


def wins(old: Sequence[float], new: Sequence[float]) -> Values:
    """How often the new answer scores higher than the old to the same prompt, among those that
    differ, with Wilson's 95 % interval."""
    won = sum(b > a for a, b in zip(old, new, strict=True))
    lost = sum(b < a for a, b in zip(old, new, strict=True))
    low, high = wilson(won, won + lost)
    rate = won / (won + lost) if won + lost else 0.5
    return {"won": won, "lost": lost, "tied": len(old) - won - lost, "rate": rate,
            "low": low, "high": high}  # fmt: skip


def read_answers(folder: Path) -> dict[str, list[str]]:
    """The answers that were kept, by the way they were drawn."""
    kept = list(records(folder / ANSWERS))
    return {name: [record[name] for record in kept] for name in TEMPERATURES}


def read_dialogs(folder: Path) -> list[list[dict[str, str]]]:
    """The prompts to them."""
    return [record["messages"] for record in records(folder / ANSWERS)]


def _answers(
    sampler: Sampler,
    dialogs: Sequence[Dialog],
    temperature: float,
    advance: Callable[[], None],
) -> list[str]:
    """One to each, by the same random numbers for every model."""
    found: list[str] = []
    for begin in range(0, len(dialogs), _CHUNK):
        chunk = dialogs[begin : begin + _CHUNK]
        seeds = [seed_of(0, "held out", begin + number) for number in range(len(chunk))]
        drawn = sampler(chunk, count=1, temperature=temperature, seeds=seeds)
        found += [some[0].text for some in drawn]
        for _ in chunk:
            advance()
    return found


def _gold(tasks: Sequence[Task], texts: Sequence[str]) -> Values:
    scores = gold(tasks, texts)
    return {
        "mean": _mean(scores),
        "error": _standard_error(scores),
        "passed": _mean([float(score == 1) for score in scores]),
        "rows": [_fields(row) for row in rows(tasks, texts)],
        "safety": [_fields(rate) for rate in safety(tasks, texts)],
    }


def _compared(
    held_out: HeldOut, old: Sequence[str], new: Sequence[str], scorers: Scorers
) -> tuple[list[float], list[float]]:
    """Scores of old and new answers by what knows best: the gold score, or the first scorer."""
    if held_out.tasks:
        return gold(held_out.tasks, old), gold(held_out.tasks, new)
    if not scorers:
        return [], []
    score = next(iter(scorers.values()))
    both = [
        score([answered(d, text) for d, text in zip(held_out.dialogs, texts, strict=True)])
        for texts in (old, new)
    ]
    return both[0], both[1]


def _write(path: Path, dialogs: Sequence[Dialog], answers: dict[str, list[str]]) -> None:
    with atomic_file(path, overwrite=True) as file:
        for number, dialog in enumerate(dialogs):
            record: dict[str, Any] = {
                "messages": [{"role": m.role, "content": m.content} for m in dialog]
            }
            record |= {name: texts[number] for name, texts in answers.items()}
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def _fields(row: Any) -> Values:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean."""
    mean, count = _mean(values), len(values)
    if count < 2:
        return 0.0
    return (sum((x - mean) ** 2 for x in values) / (count - 1) / count) ** 0.5
