"""Mathematics, as in the paper's table: GSM8K with eight shots, MATH with four."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from puna.evaluate.tasks.files import jsonl, splits_of
from puna.evaluate.tasks.task import Splits, Task, one

# MATH's kinds -> lm-eval's names.
KINDS = {
    "algebra": "algebra",
    "counting_and_probability": "counting_and_prob",
    "geometry": "geometry",
    "intermediate_algebra": "intermediate_algebra",
    "number_theory": "num_theory",
    "prealgebra": "prealgebra",
    "precalculus": "precalc",
}


def _math(folder: Path) -> Mapping[str, Splits]:
    rows = jsonl(folder / "math.jsonl")
    return {
        kind: {
            "test": [
                {"problem": row["context"], "solution": row["chain_of_thought"]}
                for row in rows
                if row["category"] == kind
            ]
        }
        for kind in KINDS
    }


MATHS = (
    Task(
        name="gsm8k",
        title="GSM8K",
        definitions="gsm8k",
        parts=one("gsm8k_cot"),
        shots=8,
        metric="exact_match",
        filter="strict-match",
        folder="gsm8k",
        rows=splits_of("gsm8k_cot", "train", "test"),
        notes=("The shots are the eight worked examples of Wei et al. (2022).",),
    ),
    Task(
        name="math",
        title="MATH",
        definitions="minerva_math",
        parts={kind: f"minerva_math_{name}" for kind, name in KINDS.items()},
        shots=4,
        metric="exact_match",
        folder="math",
        rows=_math,
        local_changes={"training_split": None},
        notes=("Prompt, shots and what counts as equal are those of Minerva.",),
    ),
)
