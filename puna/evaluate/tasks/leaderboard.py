"""The benchmarks of the Open LLM Leaderboard (its first version), as lm-eval defines them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from puna.evaluate.tasks.files import comma_separated, jsonl, splits_of
from puna.evaluate.tasks.task import Row, Splits, Task, one

# fmt: off
SUBJECTS = tuple("""
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology
    college_chemistry college_computer_science college_mathematics college_medicine
    college_physics computer_security conceptual_physics econometrics electrical_engineering
    elementary_mathematics formal_logic global_facts high_school_biology high_school_chemistry
    high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality
    international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy
    prehistory professional_accounting professional_law professional_medicine
    professional_psychology public_relations security_studies sociology us_foreign_policy
    virology world_religions
""".split())  # noqa: SIM905
# fmt: on


def _hellaswag(folder: Path) -> Mapping[str, Splits]:
    return {"hellaswag": {"validation": [_halves(r) for r in jsonl(folder / "validation.jsonl")]}}


def _halves(row: Row) -> Row:
    """The context as `ctx_a` and `ctx_b`, where a file has it whole (`ctx`).

    `ctx_b` is the unfinished sentence, which lm-eval begins with a capital.
    """
    if "ctx_a" in row:
        return row
    found = re.fullmatch(r"(.*[.!?][\"')\]]*) +([^.!?]*[^.!?\s\"')\]])", row["ctx"], re.DOTALL)
    first, second = found.groups() if found else (row["ctx"], "")
    return row | {"ctx_a": first, "ctx_b": second}


def _mmlu(folder: Path) -> Mapping[str, Splits]:
    splits = {name: jsonl(folder / f"{name}.jsonl") for name in ("test", "dev")}
    return {
        subject: {
            name: [row for row in rows if row["subject"] == subject]
            for name, rows in splits.items()
        }
        for subject in SUBJECTS
    }


def _truthfulqa(folder: Path) -> Mapping[str, Splits]:
    rows = [_choices(row) for row in comma_separated(folder / "TruthfulQA.csv")]
    return {"truthfulqa_mc2": {"validation": rows}}


def _choices(row: Mapping[str, str]) -> Row:
    """Endings from the table of answers, as its authors made `mc_task.json`."""
    right, wrong = (_answers(row[f"{kind} Answers"]) for kind in ("Correct", "Incorrect"))
    (best,) = _answers(row["Best Answer"].replace(";", ","))
    return {
        "question": row["Question"],
        "mc1_targets": {"choices": [best, *wrong], "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {
            "choices": [*right, *wrong],
            "labels": [1] * len(right) + [0] * len(wrong),
        },
    }


def _answers(text: str) -> list[str]:
    parts = (part.strip() for part in text.split(";"))
    return [part if part.endswith(".") else part + "." for part in parts if part]


LEADERBOARD = (
    Task(
        name="arc_challenge",
        title="ARC-Challenge",
        definitions="arc",
        parts=one("arc_challenge"),
        shots=25,
        metric="acc_norm",
        folder="arc_challenge",
        rows=splits_of("arc_challenge", "train", "validation", "test"),
    ),
    Task(
        name="hellaswag",
        title="HellaSwag",
        definitions="hellaswag",
        parts=one("hellaswag"),
        shots=10,
        metric="acc_norm",
        folder="hellaswag",
        rows=_hellaswag,
        # As "test" too: lm-eval leaves the question out of its own shots only there.
        local_changes={
            "training_split": None,
            "fewshot_split": "validation",
            "test_split": "validation",
        },
        local_notes=(
            "There is no train split in the local files: shots come from validation, the question "
            "itself left out.",
            "Local files have the context whole: its unfinished sentence is what follows the last "
            "full stop.",
        ),
    ),
    Task(
        name="mmlu",
        title="MMLU",
        definitions="mmlu/default",
        parts={subject: f"mmlu_{subject}" for subject in SUBJECTS},
        shots=5,
        metric="acc",
        folder="mmlu",
        rows=_mmlu,
        mean_of_groups=True,
    ),
    Task(
        name="truthfulqa_mc2",
        title="TruthfulQA (mc2)",
        definitions="truthfulqa",
        parts=one("truthfulqa_mc2"),
        shots=0,
        metric="mc2",
        folder="truthfulqa",
        rows=_truthfulqa,
        renames={"acc": "mc2"},
        notes=("Its prompt begins with six answered questions, which are part of the task.",),
        local_notes=("Endings are made of TruthfulQA.csv's columns of answers.",),
    ),
)
