"""PPO's losses (arXiv 1707.06347), as pure functions of tokens of answers.

All take rows of tokens, of any shape, and give one number a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.model import widened


def token_logprobs(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """log p(target) of each row (N,), in nats, in fp32 at least."""
    return -F.cross_entropy(widened(logits_NV), targets_N, reduction="none")


def entropies(logits_NV: Tensor) -> Tensor:
    """The entropy of each row's distribution (N,), in nats, in fp32 at least."""
    logprobs_NV = widened(logits_NV).log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def clipped_policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, *, clip: float
) -> tuple[Tensor, Tensor]:
    """max(-A r, -A clamp(r, 1 - clip, 1 + clip)) with r = pi / pi_old (equation 7), and where the
    clamped one counts: no gradient flows there."""
    ratio = (logprobs - old).exp()
    plain = -advantages * ratio
    clamped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clamped), clamped > plain


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Half the larger of (V - R)^2 and (V' - R)^2, where V' is V kept within `clip` of the old one.

    The paper names no loss of the value; this is that of OpenAI's PPO.
    """
    kept = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (kept - returns).square())
