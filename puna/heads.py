"""What is put on top of the network's hidden states."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.config import HEADS
from puna.model import Llama, widened


def next_token_logits(model: Llama, hidden: Tensor) -> Tensor:
    """Hidden states (..., D) -> logits over the vocabulary (..., V), by the tied or own head."""
    if model.output is not None:
        return model.output(hidden)
    return F.linear(hidden, model.tok_embeddings.weight)


def attach(model: Llama, *heads: str) -> None:
    """Gives a network scalar heads of `config.HEADS`, beside those that it has.

    They are children of it, without a bias, so checkpoints keep them. *Ours*: their weights are 0,
    so training begins from indifference and needs no random number.
    """
    like = next(model.parameters())
    for head in heads:
        if head not in HEADS:
            raise ValueError(f"no head {head!r}; there are: {', '.join(HEADS)}")
        linear = nn.Linear(model.config.dim, 1, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.zeros(1, model.config.dim).to(like))
        setattr(model, head, linear)


def heads_of(model: Llama) -> tuple[str, ...]:
    """The scalar heads that a network has."""
    return tuple(head for head in HEADS if hasattr(model, head))


def drop_output(model: Llama) -> None:
    """Takes the next-token head away, for a model that only scores: one that is tied has none."""
    model.output = None
    model.config = dataclasses.replace(model.config, tied=True)


def scalar(model: Llama, head: str, hidden: Tensor) -> Tensor:
    """Hidden states (..., D) -> a number each (...), by a scalar head, in fp32 at least."""
    weight = model.get_submodule(head).get_parameter("weight")
    # A product that autocast leaves alone: differences of scores are small.
    return (widened(hidden) * widened(weight[0])).sum(-1)
