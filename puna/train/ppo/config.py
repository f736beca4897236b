"""A run of PPO as resolved, and the folder that it begins with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from puna.config import ModelConfig
from puna.data.prompts import Prompt
from puna.formats.checkpoint import Checkpoint
from puna.formats.files import atomic_directory
from puna.lora import LoRASettings
from puna.plan.layout import check_uncut
from puna.train.loop import Settings
from puna.train.run_config import RunConfig, write_run
from puna.train.sampling import fits

PROMPTS = "prompts.jsonl"  # of the run
_LARGE = 20e9  # parameters; the paper's penalty is another one from 34B on


@dataclass(frozen=True, slots=True)
class PPOConfig(RunConfig):
    """`batch_size` is a mini-batch, of which `iteration_size` answers make several, one step each.

    Paper (section 3.2.3): 512 and 64, `clip`, `beta` of the KL penalty. The rest is *ours*: `gamma`
    and `lambda_` of the advantages (TRL's), `value_clip` and `value_weight` of the value's loss
    (OpenAI's and TRL's), and `cut_off_penalty`, what an answer of `max_tokens` that did not end by
    itself loses of its whitened score. With several `answers_per_prompt`, scores are compared among
    those of a prompt (`advantages.among_alternatives`). `num_held_out` prompts are evaluated on;
    where `patience` evaluations are none above the best before, the run ends (0: never).
    `num_checked` answers of an iteration compare the engine's log-probabilities with the network's.

    `start` is the path of the model that the policy begins from and is held to, `start_digest` what
    its weights were; `helpfulness` and `safety` are the paths of reward models, where they are not
    functions of a program, `scorer_digest` what the weights of both were. With `lora` the policy is
    pairs beside the start, which without them is the reference: one copy of the weights is both.
    """

    iteration_size: int = 512
    answers_per_prompt: int = 1
    max_tokens: int = 256
    beta: float = 0.01
    gamma: float = 1.0
    lambda_: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    cut_off_penalty: float = 1.0
    num_held_out: int = 64
    patience: int = 3
    num_checked: int = 64
    start: str = ""
    start_digest: str = ""
    helpfulness: str = ""
    safety: str = ""
    scorer_digest: str = ""
    lora: LoRASettings | None = None

    stage = "ppo"

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        settings = self.settings
        lora: object = self.lora
        if isinstance(lora, Mapping):  # out of JSON
            object.__setattr__(self, "lora", LoRASettings(**lora))
        if self.lora is not None and (self.lora.base != "fp32" or settings.statistics_every):
            raise ValueError(
                "LoRA pairs of a policy are merged for its engine: their base is fp32; and there "
                "are no statistics of layers with them"
            )
        if settings.compile or settings.float8:
            raise ValueError("PPO runs without compile and float8")
        check_uncut(self.layout, "PPO")
        if self.lora is not None and settings.parallel:
            raise ValueError(
                "LoRA pairs of a policy are trained in one process: leave out parallel"
            )
        if 0 < self.num_held_out < self.layout.num_ranks:
            raise ValueError(
                f"{self.layout.num_ranks} processes cannot share {self.num_held_out} held-out "
                "prompts; hold out as many as there are processes, or none"
            )
        if settings.max_rollbacks or settings.spike_deviations:
            raise ValueError(
                "PPO does not go back by itself, and its loss has no spikes: max_rollbacks and "
                "spike_deviations must be 0"
            )
        if self.iteration_size % self.last_batch_size:
            raise ValueError(
                f"an iteration of {self.iteration_size} answers is no multiple of the batch size "
                f"{self.last_batch_size}"
            )
        if len(self.batch_sizes) > 1:
            raise ValueError("the batch size of PPO does not change within a run")
        for name in ("iteration_size", "answers_per_prompt", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.iteration_size % self.answers_per_prompt:
            raise ValueError(
                f"an iteration of {self.iteration_size} answers is no multiple of "
                f"{self.answers_per_prompt} answers to each prompt"
            )
        for name in (
            "beta", "clip", "value_clip", "value_weight", "cut_off_penalty", "num_held_out",
            "patience", "num_checked",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("gamma", "lambda_"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if self.max_tokens >= self.model.context_length:
            raise ValueError(
                f"answers of {self.max_tokens} tokens leave no room for a prompt in a context of "
                f"{self.model.context_length}"
            )

    def opened_by(self, checkpoint: Path) -> str:
        if self.lora is None:
            return RunConfig.opened_by(self, checkpoint)
        return f"--model {self.start} --lora {checkpoint}"

    @property
    def steps_per_iteration(self) -> int:
        return self.iteration_size // self.last_batch_size


def ppo_settings(
    iterations: int,
    steps_per_iteration: int,
    *,
    learning_rate: float = 1e-6,
    evaluate_every: int = 10,
    patience: int = 3,
    **others: Any,
) -> Settings:
    """The paper's: AdamW (0.9, 0.95), eps 1e-5, weight decay 0.1, clip 1.0, constant 1e-6.

    `evaluate_every` is in iterations (*ours*), and so often there is a checkpoint, of which as many
    are kept that the best of the last `patience` and one evaluations is there.
    """
    every = evaluate_every * steps_per_iteration
    values: dict[str, Any] = {
        "steps": iterations * steps_per_iteration,
        "learning_rate": learning_rate,
        "warmup_steps": 0,
        "final_fraction": 1.0,  # constant
        "eval_every": every,
        "checkpoint_every": every,
        "keep_checkpoints": patience + 1,
        "spike_deviations": 0,
        "max_rollbacks": 0,
    }
    return Settings(**values | others)


def usual_beta(model: ModelConfig) -> float:
    """The paper's weight of the KL penalty: 0.01 for 7B and 13B, 0.005 for 34B and 70B."""
    return 0.01 if model.num_parameters < _LARGE else 0.005


class LeftOut(NamedTuple):
    """Prompts that are not answered: `too_long` to leave room for an answer in the context, and
    `repeated` ones, which would be held out and trained on."""

    too_long: int
    repeated: int


def prepare(run: Path, config: PPOConfig, start: Checkpoint, prompts: Sequence[Prompt]) -> LeftOut:
    """Makes the run's folder: config, tokenizer, prompts. ValueError where too few are left."""
    tokenizer, context = start.tokenizer(), config.model.context_length
    fitting = [p for p in prompts if fits(tokenizer, p.messages, config.max_tokens, context)]
    kept = list(dict.fromkeys(fitting))
    if len(kept) <= config.num_held_out:
        raise ValueError(
            f"{len(kept)} of {len(prompts)} prompts differ and leave room for answers of "
            f"{config.max_tokens} tokens in a context of {context}, and {config.num_held_out} are "
            "to be held out: none is left to train on"
        )
    with atomic_directory(run) as folder:
        write_run(folder, config, tokenizer.vocabulary)
        (folder / PROMPTS).write_text("".join(_line(prompt) for prompt in kept))
    return LeftOut(len(prompts) - len(fitting), len(fitting) - len(kept))


def _line(prompt: Prompt) -> str:
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
    record = {"messages": messages, "is_safety": prompt.is_safety, "risk": prompt.risk}
    return json.dumps(record) + "\n"
