"""Losses as pure functions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def next_token_loss_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum over all tokens of -log p(target), in nats, computed in fp32."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="sum")
