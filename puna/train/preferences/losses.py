"""Losses on pairs of answers as pure functions: reward models' and DPO's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.data.preferences import RATINGS

# Margin of each of RATINGS, best first (Llama 2, table 27); *ours*: pairs without a rating have 0.
MARGINS: dict[str, tuple[float, ...]] = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (1.0, 2 / 3, 1 / 3, 0.0),
    "large": (3.0, 2.0, 1.0, 0.0),
}


def margins_of(ratings: Tensor, size: str) -> Tensor:
    """Margins of ratings, which are places in `RATINGS`, -1 for none."""
    if size not in MARGINS:
        raise ValueError(f"no margin {size!r}; there are: {', '.join(MARGINS)}")
    table = torch.tensor([*MARGINS[size], 0.0], device=ratings.device)
    assert len(table) == len(RATINGS) + 1
    return table[ratings]  # -1 is the last


def ranking_losses(chosen: Tensor, rejected: Tensor, margins: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - m) of each pair (Llama 2, equation 2)."""
    return -F.logsigmoid(chosen - rejected - margins)


def safety_losses(logits: Tensor, is_safe: Tensor) -> Tensor:
    """The auxiliary loss of each answer, whether it is safe: 1, 0, or -1 where nobody said.

    The paper has it without a formula (section 3.2.2); *ours* is binary cross-entropy.
    """
    labelled = is_safe >= 0
    target = is_safe.clamp(min=0).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return losses * labelled


def dpo_losses(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Direct preference optimization of each pair (arXiv 2305.18290, equation 7).

    The four are log-probabilities of whole answers, of the policy and of the reference.
    """
    chosen_rewards = implicit_rewards(chosen, reference_chosen, beta)
    return ranking_losses(chosen_rewards, implicit_rewards(rejected, reference_rejected, beta))


def implicit_rewards(logprobs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """beta log(pi / pi_0), what DPO's policy says of answers (arXiv 2305.18290, equation 5)."""
    return beta * (logprobs - reference)
