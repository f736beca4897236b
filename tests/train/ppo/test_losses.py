"""PPO's losses by hand, and where gradients may flow."""

from __future__ import annotations

import math

import pytest
import torch

from puna.train.ppo.early_stopping import best_evaluation, stops_early
from puna.train.ppo.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    entropies,
    token_logprobs,
)


def test_logprobs_and_entropies() -> None:
    logits = torch.log(torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.0, 1.0]])) + 3
    logits[1, 1] = -1000
    assert token_logprobs(logits, torch.tensor([0, 2])).tolist() == pytest.approx(
        [-math.log(2)] * 2
    )
    # 1/2 log 2 + 2 (1/4) log 4 = 3/2 log 2, and log 2 of two equals.
    assert entropies(logits).tolist() == pytest.approx([1.5 * math.log(2), math.log(2)])
    assert token_logprobs(logits.bfloat16(), torch.tensor([0, 2])).dtype == torch.float32
    assert entropies(logits.bfloat16()).dtype == torch.float32


def test_the_clipped_policy_loss() -> None:
    # Ratios 1, 1.5, 1.5, 0.5, 0.5 with clip 0.2.
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([3.0, 2.0, -2.0, 2.0, -2.0])
    logprobs = ratio.log().requires_grad_()
    loss, clipped = clipped_policy_loss(logprobs, torch.zeros(5), advantages, clip=0.2)
    # A gain is counted up to 1.2 (and a loss down to 0.8) only; what made things worse, in full.
    assert loss.tolist() == pytest.approx([-3.0, -2.4, 3.0, -1.0, 1.6])
    assert clipped.tolist() == [False, True, False, False, True]
    loss.sum().backward()
    # d(-A r) / d log pi = -A r, and nothing where it is clipped.
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-3.0, 0.0, 3.0, -1.0, 0.0])


def test_the_clipped_value_loss() -> None:
    values = torch.tensor([1.0, 3.0, -3.0, 0.1]).requires_grad_()
    old, returns = torch.tensor([0.9, 1.0, 0.0, 0.0]), torch.tensor([2.0, 5.0, -5.0, 0.0])
    loss = clipped_value_loss(values, old, returns, clip=0.2)
    # Kept at 1, 1.2, -0.2 and 0.1: half of 1, (1.2 - 5)^2, (-0.2 + 5)^2 and 0.01.
    assert loss.tolist() == pytest.approx([0.5, 7.22, 11.52, 0.005])
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-1.0, 0.0, 0.0, 0.1])


@pytest.mark.parametrize(
    ("rewards", "patience", "expected"),
    [
        ([], 1, False),
        ([1.0], 1, False),
        ([1.0, 2.0, 3.0], 1, False),
        ([1.0, 2.0, 2.0], 1, True),  # as good is not better
        ([1.0, 3.0, 2.0, 2.9], 3, False),
        ([1.0, 3.0, 2.0, 2.9, 2.8], 3, True),
        ([3.0, 2.0, 1.0], 0, False),  # never
    ],
)
def test_stopping_early(rewards: list[float], patience: int, expected: bool) -> None:
    assert stops_early(rewards, patience) is expected


def test_the_best_evaluation_is_the_first_of_equals() -> None:
    assert best_evaluation([1.0, 4.0, 4.0, 2.0]) == 1
