"""World knowledge, as in the paper's table: questions without a text, five shots, exact match."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from puna.evaluate.tasks.files import jsonl, splits_of
from puna.evaluate.tasks.own_shots import NOTE, own_shots
from puna.evaluate.tasks.task import Splits, Task, one

# Case, punctuation and articles do not count: lm-eval's own for NaturalQuestions, and what
# TriviaQA's authors do, which lm-eval does not for articles.
_EXACT_MATCH = {
    "metric": "exact_match",
    "aggregation": "mean",
    "higher_is_better": True,
    "ignore_case": True,
    "ignore_punctuation": True,
    "regexes_to_ignore": [r"\b(?:The |the |An |A |a |an )"],
}


def _triviaqa(folder: Path) -> Mapping[str, Splits]:
    """Rows of a derived sample have the prompt that was made of a question: it is taken out."""
    rows = [
        {
            "question": row["context"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            # The first is what a shot answers.
            "answer": {"aliases": list(dict.fromkeys([row["answer"], *row["aliases"]]))},
        }
        for row in jsonl(folder / "triviaqa_sm_sub.jsonl")
    ]
    return {"triviaqa": {"validation": rows}}


KNOWLEDGE = (
    Task(
        name="nq_open",
        title="NaturalQuestions",
        definitions="nq_open",
        parts=one("nq_open"),
        shots=5,
        metric="exact_match",
        folder="nq_open",
        rows=splits_of("nq_open", "validation"),
        local_changes=own_shots("validation"),
        local_notes=(NOTE,),
    ),
    Task(
        name="triviaqa",
        title="TriviaQA",
        definitions="triviaqa",
        parts=one("triviaqa"),
        shots=5,
        metric="exact_match",
        folder="triviaqa",
        rows=_triviaqa,
        changes={"metric_list": [_EXACT_MATCH]},
        local_changes=own_shots("validation"),
        local_notes=("The local questions are a sample of 3,000 that was derived by others.", NOTE),
    ),
)
