"""Reading comprehension, as in the paper's table: questions about a text, without shots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.evaluate.spans import exact_match, f1
from puna.evaluate.tasks.files import jsonl, splits_of
from puna.evaluate.tasks.own_shots import own_shots
from puna.evaluate.tasks.task import Row, Splits, Task, one

UNANSWERABLE = "unanswerable"  # what is expected where a text has no answer, as in lm-eval
_MAX_TOKENS = 64  # of an answer, which is a part of a sentence


def _boolq(folder: Path) -> Mapping[str, Splits]:
    rows = jsonl(folder / "validation.jsonl")
    return {"boolq": {"validation": [row | {"label": int(row["answer"])} for row in rows]}}


def _quac(folder: Path) -> Mapping[str, Splits]:
    rows = [
        {"query": row["query"], "answers": [row["answer"], *row["aliases"]]}
        for row in jsonl(folder / "quac_rag.jsonl")
    ]
    return {"puna_quac": {"validation": rows}}


def _spans(expected: Sequence[str], results: Sequence[str]) -> dict[str, float]:
    given = results[0].strip()
    return {"exact_match": exact_match(given, expected), "f1": f1(given, expected)}


def _score_quac(doc: Row, results: Sequence[str]) -> dict[str, float]:
    return _spans(doc["answers"], results)


def _score_squad(doc: Row, results: Sequence[str]) -> dict[str, float]:
    return _spans(doc["answers"]["text"] or [UNANSWERABLE], results)


def _defined(**changes: Any) -> dict[str, Any]:
    """A task of answers in a line, by exact match and F1 of words."""
    return {
        "output_type": "generate_until",
        "validation_split": "validation",
        "target_delimiter": " ",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": _MAX_TOKENS, "do_sample": False},
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("exact_match", "f1")
        ],
        **changes,
    }


READING = (
    Task(
        name="squad",
        title="SQuAD 2.0",
        definitions=None,
        parts=one("puna_squad"),
        shots=0,
        metric="exact_match",
        folder="squad",
        rows=splits_of("puna_squad", "validation"),
        # lm-eval's own fetches its metric from the hub.
        changes=_defined(
            dataset_path="rajpurkar/squad_v2",
            training_split="train",
            doc_to_text="Title: {{title}}\n\nBackground: {{context}}\n\nQuestion: {{question}}\n\n"
            "Answer:",
            doc_to_target=f"{{{{answers.text[0] if answers.text else '{UNANSWERABLE}'}}}}",
            process_results=_score_squad,
        ),
        local_changes=own_shots("validation"),
        notes=(f"Where a text has no answer, {UNANSWERABLE!r} is the right one.",),
    ),
    Task(
        name="quac",
        title="QuAC",
        definitions=None,
        parts=one("puna_quac"),
        shots=0,
        metric="f1",
        folder="quac",
        on_hub=False,  # only as a program that would have to be run
        rows=_quac,
        changes=_defined(
            doc_to_text="{{query}}\nAnswer:",
            doc_to_target="{{answers[0]}}",
            process_results=_score_quac,
        ),
        local_changes=own_shots("validation"),
        local_notes=(
            "The local questions are a sample of 1,000 that was derived by others, with one answer "
            "each; the turns before a question are in its prompt.",
        ),
    ),
    Task(
        name="boolq",
        title="BoolQ",
        definitions="super_glue/boolq",
        parts=one("boolq"),
        shots=0,
        metric="acc",
        folder="boolq",
        rows=_boolq,
        local_changes=own_shots("validation"),
    ),
)
