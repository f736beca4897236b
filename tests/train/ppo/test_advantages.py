"""Switch, whitening, rewards and advantages: by hand, and against plain loops."""

from __future__ import annotations

import math
import random

import pytest
import torch

from puna.train.ppo.advantages import (
    UNSAFE_SCORE,
    among_alternatives,
    generalized_advantages,
    switched,
    token_rewards,
    whiten,
)


def test_the_switch() -> None:
    # sigmoid(-1.7346) = 0.15: just below it an answer is unsafe, just above it is not.
    assert pytest.approx(-1.7346, abs=5e-5) == UNSAFE_SCORE
    safety = torch.tensor([3.0, 3.0, -1.7345, -1.7347, -5.0, UNSAFE_SCORE])
    risky = torch.tensor([False, True, False, False, True, False])
    found = switched(torch.full((6,), 0.5), safety, risky)
    # Helpful; a risky prompt; safe enough; unsafe; both; not below the threshold.
    assert found.tolist() == [0.5, 3.0, 0.5, pytest.approx(-1.7347), -5.0, 0.5]
    by_probability = risky | (safety.double().sigmoid() < 0.15)
    assert torch.equal(found == safety, by_probability)


def test_answers_to_a_prompt_are_compared_with_each_other() -> None:
    scores = torch.tensor([1.0, 3.0, -10.0, -10.0, 5.0, 2.0])
    assert among_alternatives(scores, 2).tolist() == [-1, 1, 0, 0, 1.5, -1.5]
    assert among_alternatives(scores, 3).tolist() == [3, 5, -8, -9, 6, 3]
    assert torch.equal(among_alternatives(scores, 1), scores)


def test_whitening() -> None:
    # Mean 4, deviations -3, 0, 3 and variance 18 / 3 = 6.
    found = whiten(torch.tensor([1.0, 4.0, 7.0]))
    assert found.tolist() == pytest.approx([-3 / 6**0.5, 0, 3 / 6**0.5])
    mask = torch.tensor([True, False, True, False])
    assert whiten(torch.tensor([1.0, 99.0, 7.0, -5.0]), mask).tolist() == [-1, 0, 1, 0]
    assert whiten(torch.full((4,), 2.5)).tolist() == [0, 0, 0, 0]
    # In fp32 the mean of these is another number than they are.
    assert whiten(torch.full((100,), 0.1)).abs().max() < 1e-6
    # logit(sigmoid(x)) is x: whitening raw scores is the paper's whiten(logit(R)).
    scores = torch.tensor([-2.0, 0.3, 1.1, 5.0], dtype=torch.float64)
    torch.testing.assert_close(whiten(scores), whiten(scores.sigmoid().logit()))


def test_rewards_of_tokens() -> None:
    # The policy likes the tokens more than the reference by 2 and -1, and 4 and 0 of the second.
    logprobs = torch.tensor([[-1.0, -2.0, 9.0], [-1.0, -1.0, -3.0]])
    reference = torch.tensor([[-3.0, -1.0, 5.0], [-5.0, -1.0, -3.5]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    found = token_rewards(torch.tensor([10.0, 20.0]), logprobs, reference, mask, beta=0.1)
    expected = [[-0.2, 0.1 + 10, 0.0], [-0.4, 0.0, -0.05 + 20]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_advantages_by_hand() -> None:
    # gamma 1/2, lambda 1/2; V = 1, 2, 4; r = 0, 0, 8.
    # d = 0 + 1 - 1, 0 + 2 - 2, 8 + 0 - 4 = 0, 0, 4; A = 4/16, 4/4, 4.
    values, rewards = torch.tensor([[1.0, 2.0, 4.0, 7.0]]), torch.tensor([[0.0, 0.0, 8.0, 5.0]])
    mask = torch.tensor([[True, True, True, False]])
    found = generalized_advantages(rewards, values, mask, gamma=0.5, lambda_=0.5)
    assert found.tolist() == [[0.25, 1.0, 4.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_the_sums_of_the_definition(gamma: float, lambda_: float) -> None:
    generator = random.Random(0)
    lengths = (5, 1, 3)
    rewards = [[generator.gauss(0, 1) for _ in range(5)] for _ in lengths]
    values = [[generator.gauss(0, 1) for _ in range(5)] for _ in lengths]
    mask = torch.tensor([[t < length for t in range(5)] for length in lengths])
    found = generalized_advantages(
        torch.tensor(rewards).double(),
        torch.tensor(values).double(),
        mask,
        gamma=gamma,
        lambda_=lambda_,
    )
    for row, length in enumerate(lengths):
        r, v = rewards[row][:length], [*values[row][:length], 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = math.fsum((gamma * lambda_) ** k * delta[t + k] for k in range(length - t))
            assert found[row, t].item() == pytest.approx(expected, abs=1e-6)
        assert not found[row, length:].any()
