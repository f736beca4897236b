"""Runs benchmarks with lm-eval, resumably, and writes what `puna.evaluate.results` reads."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
import numpy as np
from lm_eval.evaluator import evaluate as lm_evaluate

from puna.engine.llm import LLM
from puna.evaluate.harness.answers import Answered, Answers
from puna.evaluate.harness.loading import load
from puna.evaluate.harness.model import PunaLM
from puna.evaluate.harness.scoring import result_of, sample_of
from puna.evaluate.results import (
    Results,
    Sample,
    TaskResult,
    begin,
    clock,
    write_results,
    write_samples,
)
from puna.evaluate.tasks.table import task_of
from puna.evaluate.tasks.task import Task

# Of a task and its number of requests: a context, in which one is called for each answer.
Watch = Callable[[str, int], contextlib.AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True, slots=True)
class Settings:
    """An evaluation as resolved.

    `shots` None: as many as each task has; a number is for those that have any. `questions` None:
    all, else so many of each task, drawn by `seed`, spread evenly over its groups. The shots of a
    question are drawn by `seed` too (lm-eval's own is 1234), or are the same for all with
    `shared_shots`. `left_out` are tasks of the suite whose rows are not there. With `chat` prompts
    are dialogs in Llama 2's format. `weights` tells a model from what lay at its place before.
    """

    model: str
    suite: str
    tasks: tuple[str, ...]
    weights: str = ""
    tokenizer: str | None = None
    data: str | None = None
    shots: int | None = None
    questions: int | None = None
    seed: int = 1234
    shared_shots: bool = False
    left_out: tuple[str, ...] = ()
    chat: bool = False
    max_length: int | None = None
    dtype: str = "auto"
    kv_dtype: str = "auto"


def run(settings: Settings, llm: LLM, out: Path, watch: Watch) -> Results:
    """Evaluates a model and leaves the folder `out`; what it has of an earlier run is kept.

    ValueError where a task is unknown, its rows cannot be had, or `out` is of another evaluation.
    """
    tasks = [task_of(name) for name in settings.tasks]
    for task in tasks:
        task.check()
    # Before anything is written: rows that are missing or damaged are found here.
    with quiet():
        loaded = [load_task(task, settings) for task in tasks]
    values = begin(out, dataclasses.asdict(settings))
    results = []
    with Answers(out / "answers.jsonl") as answers, clock(out) as seconds, quiet():
        seed = f"{settings.seed} {len(answers)}"
        model = PunaLM(llm, seed=seed, max_length=settings.max_length)
        for task, parts in zip(tasks, loaded, strict=True):
            samples, result = run_task(task, parts, settings, model, answers, watch)
            write_samples(out, task.name, samples)
            results.append(result)
        found = Results(settings.model, settings.suite, values, tuple(results), seconds())
    write_results(out, found)
    return found


def load_task(task: Task, settings: Settings) -> dict[str, Any]:
    """lm-eval's task of each group. ValueError where its rows cannot be had."""
    data = None if settings.data is None else Path(settings.data)
    return load(
        task,
        data,
        shots=_shots(task, settings),
        seed=settings.seed,
        shared_shots=settings.shared_shots,
    )


def run_task(
    task: Task,
    parts: Mapping[str, Any],
    settings: Settings,
    model: PunaLM,
    answers: Answers,
    watch: Watch,
) -> tuple[list[Sample], TaskResult]:
    """The questions of a task, in order, and its figures; `parts` are of `load_task`."""
    shots = _shots(task, settings)
    chosen = None
    if settings.questions is not None:
        sizes = {group: len(part.task_docs) for group, part in parts.items()}
        chosen = spread(sizes, settings.questions, settings.seed)
        parts = {group: part for group, part in parts.items() if chosen[group]}
    answered = Answered(model, answers)
    with contextlib.ExitStack() as stack:

        def show(title: str, count: int) -> Callable[[], None]:
            stack.close()  # what was shown before
            return stack.enter_context(watch(title, count))

        def begin_asking(count: int) -> None:
            answers.on_answer = show(task.title, count)

        answered.on_begin = begin_asking
        counts = {
            group: len(chosen[group] if chosen else parts[group].task_docs) for group in parts
        }
        _watch_scoring(parts, counts, lambda count: show(f"{task.title}, scored", count))
        logged = lm_evaluate(
            lm=answered,
            task_dict={"tasks": {part.task_name: part for part in parts.values()}},
            samples=chosen and {p.task_name: chosen[group] for group, p in parts.items()},
            bootstrap_iters=0,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
        )["samples"]
    samples: list[Sample] = []
    num_cut = 0
    for group, part in parts.items():
        own = logged[part.task_name]
        kept = task.filter or own[0]["filter"]
        for found in own:
            if found["filter"] == kept:
                samples.append(sample_of(task, group, part, found))
                num_cut += any(model.is_cut(*asked) for asked in found["arguments"])
    notes = _notes(task, settings, shots, num_cut, len(samples), model.max_length)
    return samples, result_of(task, samples, shots=shots, notes=notes)


def _shots(task: Task, settings: Settings) -> int:
    return task.shots if settings.shots is None or not task.shots else settings.shots


def _watch_scoring(
    parts: Mapping[str, Any],
    counts: Mapping[str, int],
    begin: Callable[[int], Callable[[], None]],
) -> None:
    """Tells of each written answer that is scored, for programs and formulas take their time."""
    written = {g: part for g, part in parts.items() if part.OUTPUT_TYPE == "generate_until"}
    total = sum(counts[g] * len(part.config.filter_list or "1") for g, part in written.items())
    begin_once = functools.cache(lambda: begin(total))

    def told(score: Callable[..., Any], *arguments: Any) -> Any:
        found = score(*arguments)
        begin_once()()
        return found

    for part in written.values():
        part.process_results = functools.partial(told, part.process_results)


def spread(sizes: Mapping[str, int], count: int, seed: int) -> dict[str, list[int]]:
    """So many questions, as evenly over groups of these sizes as they have them; in order."""
    taken = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left:
        open_groups = [group for group in sizes if taken[group] < sizes[group]]
        for place, group in enumerate(open_groups):
            more = min(sizes[group] - taken[group], -(-left // (len(open_groups) - place)))
            taken[group] += more
            left -= more
    return {
        group: sorted(random.Random(f"{seed} {group}").sample(range(size), taken[group]))
        for group, size in sizes.items()
    }


def _notes(
    task: Task, settings: Settings, shots: int, num_cut: int, count: int, max_length: int
) -> tuple[str, ...]:
    notes = list(task.notes)
    if settings.data is not None:
        notes += task.local_notes
    if settings.shared_shots and shots:
        notes.append("All questions have the same shots, the first ones of their split.")
    if settings.questions is not None:
        notes.append(f"A sample of {count} questions, drawn by seed {settings.seed}.")
    if num_cut:
        notes.append(
            f"The prompts of {num_cut} of {count} questions, with what follows, are longer than "
            f"the {max_length} tokens that the model sees at once; their beginning is cut off."
        )
    return tuple(notes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval's and datasets' own bars and remarks are not shown."""
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    loggers: Sequence[Any] = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    tqdm, lm_eval.api.task.tqdm = lm_eval.api.task.tqdm, lambda docs, **options: docs
    try:
        with np.errstate(divide="ignore"):  # by the length of an ending without characters
            yield
    finally:
        lm_eval.api.task.tqdm = tqdm
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
