"""The `tiny` alignment: a base of six million parameters, on two cores, where truth is known.

What is learned are the tasks of `recipes.tasks`; people's part is played by their gold score. All
numbers are *ours*.
"""

from __future__ import annotations

from pathlib import Path

from puna.data.text import records
from puna.formats.files import atomic_file
from puna.recipes.alignment.config import AlignConfig, Data, Stage, Version
from puna.recipes.tasks.build import build
from puna.recipes.tasks.pairs import of_safety
from puna.recipes.tasks.task import lines

_SFT = {
    "epochs": 3, "learning_rate": 1e-3, "batch_size": 8, "context_length": 256, "warmup_steps": 10,
}  # fmt: skip
_REWARD = {"learning_rate": 7e-4, "batch_size": 32}
# Of its few comparisons one epoch is 30 steps, after which it tells little.
_SAFETY = {"epochs": 5, "learning_rate": 5e-4, "batch_size": 32}
# Answers are compared with others to their prompt.
_PPO = {
    "iterations": 8, "iteration_size": 256, "answers_per_prompt": 4, "batch_size": 64,
    "micro_batch_size": 32, "learning_rate": 3e-5, "beta": 0.1, "evaluate_every": 2,
    "patience": 3, "max_tokens": 64, "held_out": 48,
}  # fmt: skip

VERSIONS = (
    # Fine-tuning alone.
    Version("V1", (Stage("sft", _SFT), Stage("obedience"))),
    # Comparisons of its answers, reward models, and the best of some answers; from the base anew,
    # with dialogs that keep to an instruction, and safe answers under a preprompt. Few samples at
    # a low temperature: of more, a small reward model picks what it is wrong about.
    Version(
        "V2",
        (
            Stage("preferences", {"max_tokens": 64}),
            Stage("reward", {"of": "helpfulness"} | _REWARD),
            Stage("reward", {"of": "safety"} | _SAFETY),
            Stage("gatt", {"dialogs": 300}),
            Stage("safety_distillation"),
            Stage("rejection_sampling", {"samples": 4, "temperature": 0.7}),
            Stage("sft", _SFT),
            Stage("obedience"),
        ),
    ),
    # PPO, on top of that.
    Version("V3", (Stage("ppo", _PPO), Stage("obedience"))),
)


def tiny(folder: Path, sources: Path, seed: int) -> AlignConfig:
    """The recipe, whose tasks are made in a new `folder` from `sources` where they are not there.

    ValueError where a source is missing (`recipes.tasks.build`).
    """
    if not folder.exists():
        build(folder, sources, seed=seed)
    comparisons = list(records(folder / "preferences.jsonl"))
    for name, is_of in (("helpfulness", False), ("safety", True)):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            with atomic_file(path) as file:
                file.write(lines([each for each in comparisons if of_safety(each) == is_of]))
    data = Data(
        sft=(folder / "sft.jsonl",),
        prompts=folder / "prompts.jsonl",
        ppo_prompts=folder / "ppo_prompts.jsonl",
        preferences=(folder / "helpfulness.jsonl",),
        safety=(folder / "safety.jsonl",),
        red_team=folder / "red_team.jsonl",
        held_out=folder / "held_out.jsonl",
        questions=folder / "questions.jsonl",
        held_out_questions=folder / "held_out_questions.jsonl",
    )
    return AlignConfig("cria", data, VERSIONS, seed)
