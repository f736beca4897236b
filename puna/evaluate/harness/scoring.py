"""What lm-eval says of each question -> samples, means and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from puna.evaluate.means import mean_of, mean_of_groups
from puna.evaluate.results import Sample, Score, TaskResult
from puna.evaluate.tasks.task import Task


def sample_of(task: Task, group: str, definition: Any, found: Mapping[str, Any]) -> Sample:
    """One of lm-eval's logged samples, of its task `definition`, as ours."""
    metrics = {
        task.renames.get(name, name): float(found[name])
        for name in found["metrics"]
        if isinstance(found[name], int | float)
    }
    is_divided = len(task.parts) > 1
    number, asked = str(found["doc_id"]), found["arguments"]
    if definition.OUTPUT_TYPE == "multiple_choice":
        logprobs = [answer[0] for answer in found["filtered_resps"]][: len(asked)]
        question, endings, right = _choices(definition, found)
        lengths = [len(ending) if task.metric == "acc_norm" else 1 for ending in endings]
        # As lm-eval divides: an ending without characters weighs minus infinity.
        with np.errstate(divide="ignore"):
            weights = np.divide(logprobs[: len(lengths)], lengths)
        given, answer = endings[int(np.argmax(weights))], right
    else:
        logprobs = None
        question, answer = str(definition.doc_to_text(found["doc"])), str(found["target"])
        first = found["filtered_resps"][0]
        given = str(first[0] if isinstance(first, list) and first else first)  # of many tries
        if definition.OUTPUT_TYPE != "generate_until":
            logprobs, given = [_logprob(found["filtered_resps"][0])], ""
    return Sample(
        id=f"{group}/{number}" if is_divided else number,
        question=question,
        answer=answer,
        given=given,
        metrics=metrics,
        logprobs=logprobs,
        group=group if is_divided else None,
    )


def _choices(definition: Any, found: Mapping[str, Any]) -> tuple[str, list[str], str]:
    """Question, endings and the right one."""
    doc = found["doc"]
    endings = [str(choice) for choice in definition.doc_to_choice(doc)]
    if definition.multiple_input:  # the choices come before one ending
        return str(definition.doc_to_target(doc)), endings, endings[definition.doc_to_text(doc)]
    right = found["target"]
    right = right[0] if isinstance(right, list) else right
    return (
        str(definition.doc_to_text(doc)),
        endings,
        endings[right] if isinstance(right, int) else str(right),
    )


def _logprob(answer: Any) -> float:
    return float(answer[0] if isinstance(answer, list | tuple) else answer)


def result_of(
    task: Task, samples: Sequence[Sample], *, shots: int, notes: tuple[str, ...]
) -> TaskResult:
    """A task's figures; of one that divides into groups, by question and by group."""
    by_group: dict[str, list[Sample]] = {}
    for sample in samples:
        by_group.setdefault(sample.group or "", []).append(sample)
    metrics: dict[str, Score] = {}
    groups: dict[str, Score] = {}
    for name in samples[0].metrics:
        if not all(name in sample.metrics for sample in samples):
            continue  # of some groups only, such as AGIEval's that have choices
        by_question = mean_of([sample.metrics[name] for sample in samples])
        own = {
            group: _of_group([sample.metrics[name] for sample in each], by_question)
            for group, each in by_group.items()
        }
        metrics[name] = by_question
        if len(own) > 1:
            if name == task.metric:
                groups = own
            mean = mean_of_groups(list(own.values()))
            metrics[name] = mean if task.mean_of_groups else by_question
            other = "by_question" if task.mean_of_groups else "by_group"
            metrics[f"{name}_{other}"] = by_question if task.mean_of_groups else mean
    if len(by_group) > 1 and task.mean_of_groups:
        notes = (
            f"{task.metric} is the unweighted mean of {len(by_group)} groups; "
            f"{task.metric}_by_question that of all questions.",
            *notes,
        )
    return TaskResult(task.name, task.title, shots, task.metric, metrics, groups, notes)


def _of_group(values: Sequence[float], all_: Score) -> Score:
    """A group's figure; one question shows no deviation: that of all questions stands for it."""
    score = mean_of(values)
    if len(values) > 1:
        return score
    return replace(score, stderr=all_.stderr * math.sqrt(all_.questions))
