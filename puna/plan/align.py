"""What alignment takes: fine-tuning, reward models, rejection sampling, PPO.

Three rates make it all: tokens trained on a second, tokens that only a forward pass sees (a third
of training's operations), and tokens sampled, by `puna.plan.serve`. Numbers of the paper ("Llama
2", arXiv 2307.09288) are defaults; what it does not give is *ours*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from puna.config import ModelConfig
from puna.plan.hardware import Cluster
from puna.plan.serve import Setting, first_token_seconds, step_seconds
from puna.plan.train import SLOWEST
from puna.plan.weights import weights

# A forward pass of what a training step does forward and twice backward.
_FORWARD_SHARE = 1 / 3
# Bytes a parameter: of a policy in training (fp32 weights, gradients, moments), of a model that is
# only asked (bf16).
_TRAINED_BYTES, _ASKED_BYTES = 16, 2
_MEMORY_SHARE = 0.9
REWARD_MODELS = 2  # helpfulness and safety, of the policy's size
PAPER_PPO_SECONDS = 330  # an iteration at 70B; on how many GPUs is not said


@dataclass(frozen=True, slots=True)
class Work:
    """How much is done. `prompt` and `answer` are mean tokens; a dialog is both.

    Given by the paper: examples and epochs of fine-tuning, comparisons and their tokens (table 6),
    the batch of PPO. *Ours*: tokens of a fine-tuning example, prompts and samples of rejection
    sampling, prompts and answers in tokens, and the middle of "200 to 400 iterations".
    """

    examples: int = 27_540
    example_tokens: int = 600
    epochs: int = 2
    comparisons: int = 2_919_326
    comparison_tokens: int = 596
    prompts: int = 50_000
    samples: int = 10
    iterations: int = 300
    batch: int = 512
    prompt: int = 512
    answer: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name.replace('_', ' ')} must be positive, not {value}")


@dataclass(frozen=True, slots=True)
class Rig:
    """A model on a cluster: `training` tokens/s a device; engines share `ways` devices."""

    config: ModelConfig
    cluster: Cluster
    training: float
    ways: int

    @property
    def trained(self) -> float:
        """Tokens/s that the cluster trains on."""
        return self.training * self.cluster.count

    @property
    def scored(self) -> float:
        """Tokens/s that it runs forward."""
        return self.trained / _FORWARD_SHARE

    @property
    def engines(self) -> int:
        return self.cluster.count // self.ways


@dataclass(frozen=True, slots=True)
class Stage:
    """Seconds of each part of a stage, or of one iteration of it, done `times`."""

    name: str
    parts: dict[str, float]
    times: int
    devices: int

    @property
    def each(self) -> float:
        return sum(self.parts.values())

    @property
    def gpu_hours(self) -> float:
        return self.each * self.times * self.devices / 3600

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.each * self.times, "gpu_hours": self.gpu_hours}


def make_rig(config: ModelConfig, cluster: Cluster, training: float) -> Rig:
    """With engines of as few devices as hold the weights and one context.

    ValueError where a node does not hold the model to sample.
    """
    if not training > SLOWEST:
        raise ValueError(f"training at {training:g} tokens/s a device never ends")
    stored = weights(config, "bf16")
    one = Setting(config, stored, cluster.device, 1, config.context_length, 1)
    for ways in range(1, min(cluster.per_node, cluster.count) + 1):
        if cluster.count % ways or config.num_heads % ways:
            continue
        if replace(one, ways=ways).most_users:
            return Rig(config, cluster, training, ways)
    raise ValueError(
        f"one node of {cluster.per_node} x {cluster.device.name} does not hold the model to sample"
    )


def generation_seconds(rig: Rig, sequences: int, prompt: int, answer: int) -> float:
    """Of sampling so many answers, which all engines share; weights are gathered first, once a
    node, from where training has them. As many sequences run at once as fit, in turns.

    ValueError where a dialog is longer than the model's context.
    """
    config, device = rig.config, rig.cluster.device
    if prompt + answer > config.context_length:
        raise ValueError(
            f"prompts of {prompt} tokens and answers of {answer} are more than the "
            f"{config.context_length} of the model's context; choose a smaller --prompt or --answer"
        )
    stored = weights(config, "bf16")
    setting = Setting(config, stored, device, rig.ways, prompt + answer, prompt)
    share = -(-sequences // rig.engines)
    at_once = max(1, min(share, setting.most_users))
    turns = share / at_once
    reading = first_token_seconds(setting)
    decoding = answer * step_seconds(setting, at_once, context=prompt + answer / 2)
    gathered = 0.0
    if rig.cluster.num_nodes > 1 and rig.cluster.network_rate:
        gathered = stored.total / (rig.cluster.network_rate * rig.cluster.per_node)
    return gathered + share * reading + turns * decoding


def _sft(rig: Rig, work: Work) -> Stage:
    tokens = work.examples * work.example_tokens * work.epochs
    return Stage("sft", {"training": tokens / rig.trained}, 1, rig.cluster.count)


def _reward(rig: Rig, work: Work) -> Stage:
    tokens = 2 * work.comparisons * work.comparison_tokens  # both answers of a pair
    parts = {"training": tokens / rig.trained}
    return Stage("reward", parts, REWARD_MODELS, rig.cluster.count)


def _rejection_sampling(rig: Rig, work: Work) -> Stage:
    dialog = work.prompt + work.answer
    sampled = work.prompts * work.samples
    parts = {
        "generation": generation_seconds(rig, sampled, work.prompt, work.answer),
        "scoring": REWARD_MODELS * sampled * dialog / rig.scored,
        "training": work.prompts * dialog / rig.trained,
    }
    return Stage("rejection-sampling", parts, 1, rig.cluster.count)


def _ppo(rig: Rig, work: Work) -> Stage:
    _check_memory(rig)
    tokens = work.batch * (work.prompt + work.answer)
    # Reward models, the reference, and the policy with its values, each one forward pass.
    asked = REWARD_MODELS + 2
    parts = {
        "generation": generation_seconds(rig, work.batch, work.prompt, work.answer),
        "scoring": asked * tokens / rig.scored,
        "training": tokens / rig.trained,
    }
    return Stage("ppo", parts, work.iterations, rig.cluster.count)


def _check_memory(rig: Rig) -> None:
    """ValueError, saying how many devices it takes, where the models of PPO do not fit."""
    cluster = rig.cluster
    asked = (1 + REWARD_MODELS) * _ASKED_BYTES
    needed = (_TRAINED_BYTES + asked) * rig.config.num_parameters
    each = _MEMORY_SHARE * cluster.device.memory_bytes
    if needed > cluster.count * each:
        raise ValueError(
            f"PPO's policy, reference and {REWARD_MODELS} reward models take "
            f"{needed / 1e9:,.0f} GB, {cluster.count} x {cluster.device.name} have "
            f"{cluster.count * each / 1e9:,.0f}; use {-(-needed // each):.0f} or more, or plan "
            "only the other stages (--stage)"
        )


STAGES: dict[str, Callable[[Rig, Work], Stage]] = {
    "sft": _sft,
    "reward": _reward,
    "rejection-sampling": _rejection_sampling,
    "ppo": _ppo,
}


def plan_align(rig: Rig, work: Work, names: tuple[str, ...] = tuple(STAGES)) -> list[Stage]:
    """The stages asked for, in the order of `STAGES`.

    ValueError lists the stages there are, or says what does not fit, and what would.
    """
    for name in names:
        if name not in STAGES:
            raise ValueError(f"no stage '{name}'; there are: {', '.join(STAGES)}")
    return [make(rig, work) for name, make in STAGES.items() if name in names]
