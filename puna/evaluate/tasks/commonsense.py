"""Commonsense, as in the paper's table: eight benchmarks of choices.

All but CommonsenseQA are asked without shots. Endings count by their likelihood for each character
(`acc_norm`), as LLaMA-1's paper has it, where they are not two words or letters. *Ours*: also in
OpenBookQA, where that paper divides by the ending's likelihood after "Answer:".
"""

from __future__ import annotations

import dataclasses

from puna.evaluate.tasks.files import splits_of
from puna.evaluate.tasks.leaderboard import LEADERBOARD
from puna.evaluate.tasks.own_shots import NOTE, own_shots
from puna.evaluate.tasks.task import Task, one

# lm-eval's own have no metric by bytes, and SIQA none by characters.
_BY_LENGTH = {
    "metric_list": [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True}
        for metric in ("acc", "acc_norm", "acc_bytes")
    ]
}
_ARC, _HELLASWAG = (
    next(task for task in LEADERBOARD if task.name == name)
    for name in ("arc_challenge", "hellaswag")
)

COMMONSENSE = (
    Task(
        name="piqa",
        title="PIQA",
        definitions="piqa",
        parts=one("piqa"),
        shots=0,
        metric="acc_norm",
        folder="piqa",
        rows=splits_of("piqa", "validation"),
        changes=_BY_LENGTH,
        local_changes=own_shots("validation"),
    ),
    Task(
        name="social_iqa",
        title="SIQA",
        definitions="siqa",
        parts=one("social_iqa"),
        shots=0,
        metric="acc_norm",
        folder="social_i_qa",
        rows=splits_of("social_iqa", "validation"),
        changes=_BY_LENGTH,
        local_changes=own_shots("validation"),
    ),
    dataclasses.replace(
        _HELLASWAG,
        name="hellaswag_0shot",
        title="HellaSwag (0-shot)",
        shots=0,
        changes=_BY_LENGTH,
        local_notes=_HELLASWAG.local_notes[1:],
    ),
    Task(
        name="winogrande",
        title="WinoGrande",
        definitions="winogrande",
        parts=one("winogrande"),
        shots=0,
        metric="acc",
        folder="winogrande",
        rows=splits_of("winogrande", "validation"),
        local_changes=own_shots("validation"),
    ),
    Task(
        name="arc_easy",
        title="ARC-Easy",
        definitions="arc",
        parts=one("arc_easy"),
        shots=0,
        metric="acc_norm",
        folder="arc_easy",
        rows=splits_of("arc_easy", "train", "validation", "test"),
        changes=_BY_LENGTH,
    ),
    dataclasses.replace(
        _ARC,
        name="arc_challenge_0shot",
        title="ARC-Challenge (0-shot)",
        shots=0,
        changes=_BY_LENGTH,
    ),
    Task(
        name="openbookqa",
        title="OpenBookQA",
        definitions="openbookqa",
        parts=one("openbookqa"),
        shots=0,
        metric="acc_norm",
        folder="openbookqa",
        rows=splits_of("openbookqa", "validation"),
        changes=_BY_LENGTH,
        local_changes=own_shots("validation"),
        local_notes=("The local questions are those of the validation split.",),
    ),
    Task(
        name="commonsense_qa",
        title="CommonsenseQA",
        definitions="commonsense_qa",
        parts=one("commonsense_qa"),
        shots=7,
        metric="acc",
        folder="commonsense_qa",
        rows=splits_of("commonsense_qa", "validation"),
        local_changes=own_shots("validation"),
        local_notes=(NOTE,),
    ),
)
