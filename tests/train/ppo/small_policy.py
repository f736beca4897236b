"""A policy so small that PPO changes it in seconds, and a run of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from puna.chat import Message
from puna.config import ModelConfig
from puna.data.prompts import Prompt
from puna.formats import huggingface, open_checkpoint
from puna.formats.network import as_checkpoint
from puna.model import Llama, initialize
from puna.tokenizer import Vocabulary
from puna.train.ppo.config import PPOConfig, ppo_settings, prepare
from puna.train.sampling import Dialog
from puna.train.starting import weights_digest

MODEL = ModelConfig(32, 2, 4, 2, 48, vocab_size=420, context_length=48)
PROMPTS = [
    Prompt((Message("user", f"{verb} {what}"),), is_safety=what == "foxes")
    for verb in ("count", "draw", "name")
    for what in ("llamas", "stones", "foxes", "rivers")
]


def new_policy(folder: Path, vocabulary: Vocabulary, sharpness: float = 1.0) -> Path:
    """A model whose weights were drawn, its logits times `sharpness`, in `folder`."""
    network = Llama(MODEL)
    initialize(network, torch.Generator().manual_seed(5))
    assert network.output is not None
    with torch.no_grad():
        network.output.weight.mul_(sharpness)
    huggingface.write(as_checkpoint(network, folder, vocabulary), folder)
    return folder


def ppo_config(start: Path, **changes: Any) -> PPOConfig:
    """Mini-batches of 8, two an iteration, each in two pieces."""
    own = {field.name for field in dataclasses.fields(PPOConfig)}
    values: dict[str, Any] = {"iteration_size": 16, "max_tokens": 6, "num_held_out": 4}
    values["micro_batch_size"] = 4
    values |= {name: changes.pop(name) for name in own & set(changes)}
    iterations = changes.pop("iterations", 3)
    options = {"learning_rate": 3e-3, "dtype": "fp32", "evaluate_every": 100} | changes
    options["patience"] = values.setdefault("patience", 3)
    checkpoint = open_checkpoint(start)
    return PPOConfig(
        model=checkpoint.config,
        settings=ppo_settings(iterations, values["iteration_size"] // 8, **options),
        batch_size=8,
        seed=1,
        start=str(start),
        start_digest=weights_digest(checkpoint),
        **values,
    )


def new_run(folder: Path, start: Path, prompts: Sequence[Prompt] = PROMPTS, **changes: Any) -> Path:
    config = ppo_config(start, **changes)
    prepare(folder, config, open_checkpoint(start), prompts)
    return folder


def letters(dialogs: Sequence[Dialog]) -> list[float]:
    """A true reward: how often an answer has the letter a."""
    return [float(dialog[-1].content.count("a")) for dialog in dialogs]
