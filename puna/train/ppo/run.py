"""A run of PPO, begun or gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from puna.chat import LLAMA2_TEMPLATE
from puna.data.prompts import read_prompts
from puna.formats.checkpoint import Checkpoint
from puna.formats.run_folder import steps_saved
from puna.heads import attach, heads_of
from puna.model import Llama
from puna.train.loop import train
from puna.train.ppo.config import PROMPTS, PPOConfig
from puna.train.ppo.early_stopping import evaluations, stops_early
from puna.train.ppo.scores import Scorers
from puna.train.ppo.stage import PPO
from puna.train.run_config import read_config, read_vocabulary
from puna.train.running import check_machine
from puna.train.single import Single
from puna.train.starting import lora_network, open_start, start_network, weights_digest


def ppo(run: Path, scorers: Scorers, **options: Any) -> bool:
    """Starts or continues a prepared run (`config.prepare`); `options` are those of
    `train.loop.train`. Returns False if a signal stopped it early.
    """
    config = read_config(run, PPOConfig)
    check_machine(config.settings.device, float8=False)
    start = open_start(config.start)
    if start.config != config.model or weights_digest(start) != config.start_digest:
        raise ValueError(
            f"{config.start} is not what the run began from, which its policy is held to; bring "
            f"that back, or correct 'start' in {run / 'config.json'}"
        )
    network, reference = _networks(config, start)
    vocabulary = read_vocabulary(run)
    prompts = read_prompts(run / PROMPTS)
    stage = PPO(run, config, network, reference, vocabulary, prompts, scorers)
    on_start = options.pop("on_start", lambda step: None)
    saved = max(steps_saved(run), default=0)
    if stops_early([reward for _, reward in evaluations(run, saved)], config.patience):
        on_start(saved)
        return True

    def begin(step: int) -> None:
        stage.begin(step)
        on_start(step)

    trainee = Single(network, stage, config.settings)
    return train(
        trainee, stage, config.settings, run, vocabulary,
        on_start=begin, complete=stage.complete, chat_template=LLAMA2_TEMPLATE, **options,
    )  # fmt: skip


def _networks(config: PPOConfig, start: Checkpoint) -> tuple[Llama, Llama | None]:
    """The policy with its value head, and what it is held to where that is another network."""
    device = config.settings.device
    reference = None
    if config.lora is None:
        network, reference = (start_network(start, device) for _ in range(2))
        reference.requires_grad_(False)
    else:
        generator = torch.Generator().manual_seed(config.seed)
        network = lora_network(start, config.lora, device, generator)
    attach(network, *{"value"} - set(heads_of(network)))
    return network, reference
