"""Reward models that were never trained: the shipped model, or another, under a head of noise."""

from __future__ import annotations

from pathlib import Path

import torch

from puna.commands.models import resolve
from puna.formats import huggingface
from puna.formats.checkpoint import Checkpoint
from puna.formats.network import as_checkpoint, load_model
from puna.heads import attach


def new_reward_model(
    folder: Path, *, of: Checkpoint | None = None, weight: float | None = None
) -> Path:
    """Writes one to `folder`; all of its head is `weight`, if that is given."""
    checkpoint = of or resolve("cria")
    network = load_model(checkpoint)
    attach(network, "score")
    head = network.get_submodule("score").get_parameter("weight")
    with torch.no_grad():
        if weight is None:
            head.normal_(generator=torch.Generator().manual_seed(1))
        else:
            head.fill_(weight)
    huggingface.write(as_checkpoint(network, folder, checkpoint.vocabulary), folder)
    return folder
