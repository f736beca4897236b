"""From reward models' scores to PPO's advantages, as pure functions.

Llama 2 (arXiv 2307.09288, section 3.2.3): R(g | p) = R~c(g | p) - beta KL(pi || pi0), where R~c is
the whitened logit of Rc, and Rc the Safety model's score where the prompt is a risky one or the
answer an unsafe one, else the Helpfulness model's. The logit of a sigmoid is the raw score, so
scores here are raw.

Shapes: B answers, T tokens of them, right-padded; `mask` is true on tokens of an answer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNSAFE = 0.15  # the paper's, of the Safety model's probability
UNSAFE_SCORE = math.log(UNSAFE / (1 - UNSAFE))  # the same of its raw score: -1.7346
_EPS = 1e-8


def switched(helpfulness_B: Tensor, safety_B: Tensor, is_safety_B: Tensor) -> Tensor:
    """Rc as raw scores (B,): safety where `is_safety` or sigmoid(safety) < 0.15, else
    helpfulness."""
    return torch.where(is_safety_B | (safety_B < UNSAFE_SCORE), safety_B, helpfulness_B)


def whiten(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """(x - mean) / deviation, over all of x or where `mask` is true; 0 elsewhere, and all 0 where
    they are equal.

    *Ours*: the deviation is that of the numbers themselves (division by their count).
    """
    if mask is None:
        mask = torch.ones_like(x, dtype=torch.bool)
    count, wide = mask.sum(), x.double()  # in fp32 equal numbers may differ from their mean
    mean = torch.where(mask, wide, 0).sum() / count
    centred = torch.where(mask, wide - mean, 0)
    return (centred / ((centred.square().sum() / count).sqrt() + _EPS)).to(x.dtype)


def among_alternatives(scores_B: Tensor, count: int) -> Tensor:
    """Scores (B,) less the mean of those of their prompt, whose `count` answers follow each other.

    *Ours*, with several answers to a prompt (as in arXiv 2402.14740): most of what scores differ by
    is the prompt, of which a policy can learn nothing. Of one answer alone the scores as they are.
    """
    if count == 1:
        return scores_B
    groups = scores_B.unflatten(0, (-1, count))
    return (groups - groups.mean(1, keepdim=True)).flatten()


def final_scores(scores_B: Tensor, finished_B: Tensor, *, cut_off_penalty: float) -> Tensor:
    """R~c (B,): whitened scores. *Ours*: an answer that was cut off before its end loses
    `cut_off_penalty`, in deviations of the batch; what it says has no end that could be scored."""
    return whiten(scores_B) - cut_off_penalty * ~finished_B


def token_rewards(
    scores_B: Tensor,
    logprobs_BT: Tensor,
    reference_BT: Tensor,
    mask_BT: Tensor,
    *,
    beta: float,
) -> Tensor:
    """What each token earns (B, T): -beta (log pi - log pi0), and the last one the score too.

    *Ours*: the penalty is each token's own, whose sum over an answer that was sampled from pi is an
    unbiased estimate of the KL divergence. An answer has one token at least.
    """
    rewards_BT = torch.where(mask_BT, -beta * (logprobs_BT - reference_BT), 0)
    last_B1 = mask_BT.sum(1, keepdim=True) - 1
    return rewards_BT.scatter_add(1, last_B1, scores_B[:, None].to(rewards_BT.dtype))


def generalized_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lambda_: float
) -> Tensor:
    """GAE (arXiv 1506.02438, equation 16): the sum over k of (gamma lambda)^k d(t + k) with
    d(t) = r(t) + gamma V(t + 1) - V(t), (B, T), 0 off the mask.

    V(t) is the value of what comes before token t; that after an answer's last token is 0, also
    where the answer was cut off.
    """
    masked = mask_BT.to(values_BT.dtype)
    values_BT = values_BT * masked
    advantages_BT = torch.zeros_like(values_BT)
    value = advantage = values_BT.new_zeros(len(values_BT))
    for t in reversed(range(values_BT.shape[1])):
        difference = rewards_BT[:, t] + gamma * value - values_BT[:, t]
        # Off the mask everything stays 0, so that an answer's end is the end.
        advantage = (difference + gamma * lambda_ * advantage) * masked[:, t]
        value = values_BT[:, t]
        advantages_BT[:, t] = advantage
    return advantages_BT
