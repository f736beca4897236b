"""Sets of many tasks, as in the paper's table: BIG-Bench Hard and the English part of AGIEval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from puna.evaluate.tasks.files import jsonl, text_of
from puna.evaluate.tasks.own_shots import own_shots
from puna.evaluate.tasks.task import Row, Splits, Task

# fmt: off
BBH = tuple("""
    boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages
    formal_fallacies geometric_shapes hyperbaton logical_deduction_five_objects
    logical_deduction_seven_objects logical_deduction_three_objects movie_recommendation
    multistep_arithmetic_two navigate object_counting penguins_in_a_table
    reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
    sports_understanding temporal_sequences tracking_shuffled_objects_five_objects
    tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects web_of_lies
    word_sorting
""".split())  # noqa: SIM905
# fmt: on

AGIEVAL = (
    "aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "math",
    "sat-en", "sat-en-without-passage", "sat-math",
)  # fmt: skip


def _bbh(folder: Path) -> Mapping[str, Splits]:
    return {
        name: {"test": json.loads(text_of(folder / "tasks" / f"{name}.json"))["examples"]}
        for name in BBH
    }


def _agieval(folder: Path) -> Mapping[str, Splits]:
    return {
        name: {"test": [_asked(row) for row in jsonl(folder / f"{name}.jsonl")]} for name in AGIEVAL
    }


def _asked(row: Row) -> Row:
    """A question in the words of AGIEval's authors, for choices or for an answer in figures."""
    question = f"{row['passage'] or ''}Q: {row['question']}"
    if not row["options"]:
        return {"query": f"{question}\nA: The answer is", "answer": row["answer"]}
    last = "ABCDEFG"[len(row["options"]) - 1]
    choices = " ".join(row["options"])
    return {
        "query": f"{question} Answer Choices: {choices}\nA: Among A through {last}, the answer is",
        "choices": row["options"],
        "gold": ["ABCDEFG".index(label) for label in row["label"]],
    }


REASONING = (
    Task(
        name="bbh",
        title="BBH",
        definitions="bbh/cot_fewshot",
        parts={name: f"bbh_cot_fewshot_{name}" for name in BBH},
        shots=3,
        metric="exact_match",
        filter="get-answer",
        folder="bbh",
        rows=_bbh,
        notes=("The shots are worked examples, step by step (Suzgun et al. 2022).",),
    ),
    Task(
        name="agieval",
        title="AGIEval (English)",
        definitions="agieval",
        parts={name: f"agieval_{name.replace('-', '_')}" for name in AGIEVAL},
        shots=3,
        metric="acc",
        folder="agieval",
        rows=_agieval,
        changes=own_shots("test") | {"doc_to_target": "{{gold[0] if gold is defined else answer}}"},
        mean_of_groups=True,
        notes=(
            "Shots come from the questions, each left out; the paper has 3 to 5, the worked "
            "examples of AGIEval's authors.",
        ),
    ),
)
