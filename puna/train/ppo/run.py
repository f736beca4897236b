"""A run of PPO, begun or gone on with, in one process or several."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.chat import LLAMA2_TEMPLATE
from puna.data.prompts import read_prompts
from puna.formats.checkpoint import Checkpoint
from puna.formats.run_folder import steps_saved
from puna.heads import attach, heads_of
from puna.parallel.place import HANG_TIMEOUT, Place
from puna.train.contracts import Trainee
from puna.train.loop import train
from puna.train.ppo.config import PROMPTS, PPOConfig
from puna.train.ppo.early_stopping import evaluations, stops_early
from puna.train.ppo.scores import Scorers
from puna.train.ppo.stage import PPO
from puna.train.run_config import read_config, read_vocabulary
from puna.train.running import check_machine, of_the_first, placed
from puna.train.single import Single
from puna.train.starting import (
    lora_network,
    make_trainee,
    open_start,
    start_weights,
    weights_digest,
)


def ppo(
    run: Path,
    scorers: Scorers,
    *,
    parallel: str | None = None,
    hang_timeout: float = HANG_TIMEOUT,
    **options: Any,
) -> bool:
    """Starts or continues a prepared run (`config.prepare`); `options` are those of
    `train.loop.train`, `parallel` another layout than the run's own.

    With a layout, each of its processes calls this, with scorers of its own, and what becomes of
    one that is gone or does not move is as in `running.run_stage`. Returns False if a signal
    stopped it early.
    """
    config = read_config(run, PPOConfig, parallel)
    check_machine(config.settings.device, float8=False)
    start = open_start(config.start)
    with placed(config, hang_timeout, data="sampling") as (place, watch):
        is_first = place is None or place.rank == 0
        digest = of_the_first(place, weights_digest(start) if is_first else "")
        if start.config != config.model or digest != config.start_digest:
            raise ValueError(
                f"{config.start} is not what the run began from, which its policy is held to; "
                f"bring that back, or correct 'start' in {run / 'config.json'}"
            )
        vocabulary = read_vocabulary(run)
        stage = PPO(run, config, vocabulary, read_prompts(run / PROMPTS), scorers)
        on_start = options.pop("on_start", lambda step: None)
        saved = max(steps_saved(run), default=0)
        rewards = [reward for _, reward in evaluations(run, saved)]
        saved, rewards = of_the_first(place, (saved, rewards))
        if stops_early(rewards, config.patience):
            on_start(saved)
            return True
        policy, reference = _trainees(config, start, stage, place, first=saved == 0)
        stage.meet(policy, reference)

        def begin(step: int) -> None:
            stage.begin(step)
            on_start(step)

        options |= watch
        return train(
            policy, stage, config.settings, run, vocabulary, on_start=begin,
            complete=stage.complete, chat_template=LLAMA2_TEMPLATE, **options,
        )  # fmt: skip


def _trainees(
    config: PPOConfig, start: Checkpoint, stage: PPO, place: Place | None, *, first: bool
) -> tuple[Trainee, Trainee | None]:
    """The policy with its value head, and what it is held to where that is another network.

    `first` is whether no checkpoint is going to fill the policy.
    """
    settings = config.settings
    if config.lora is not None:
        generator = torch.Generator().manual_seed(config.seed)
        network = lora_network(start, config.lora, settings.device, generator)
        attach(network, *{"value"} - set(heads_of(network)))
        return Single(network, stage, settings), None
    weights = partial(_first_weights, start)
    policy = make_trainee(
        config.model, settings, stage, place, weights if first else None, heads=("value",)
    )
    reference = make_trainee(config.model, settings, stage, place, weights)
    reference.network.requires_grad_(False)
    return policy, reference


def _first_weights(start: Checkpoint, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """The start's; a value head that it has not is 0 (`heads.attach`)."""
    yield from start_weights(start, [name for name in names if name in start.tensors])
    if "value.weight" in names and "value.weight" not in start.tensors:
        yield "value.weight", torch.zeros(1, start.config.dim)
