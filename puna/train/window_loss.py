"""The loss of windows, as one process computes it; several do by `train.several`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from puna.attention import causal_in_blocks, masked
from puna.heads import next_token_logits
from puna.model import Llama
from puna.train.losses import chunked_next_token_loss_sum, next_token_loss_sum


def hidden_states(model: Callable[..., Tensor], tokens_BT: Tensor, mask: Tensor | None) -> Tensor:
    """Of token ids the hidden states (B, T, D); `mask` as of `Stage.windows`."""
    positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
    return model(tokens_BT, positions, causal_in_blocks if mask is None else masked(mask))


def head_loss_sum(network: Llama, hidden: Tensor, targets: Tensor, *, chunk: int = 0) -> Tensor:
    """Sum of the next-token loss of hidden states (B, T, D) and targets (B, T), with the logits of
    `chunk` tokens at once (0: of all)."""
    if chunk:
        head = network.tok_embeddings if network.output is None else network.output
        return chunked_next_token_loss_sum(hidden, head.weight, targets, chunk=chunk)
    return next_token_loss_sum(next_token_logits(network, hidden), targets)
