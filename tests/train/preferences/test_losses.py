"""Losses on pairs: numbers worked out by hand, and plain loops (TRL's: tests/peers)."""

from __future__ import annotations

import math

import pytest
import torch

from puna.data.preferences import RATINGS
from puna.train.preferences.losses import (
    MARGINS,
    dpo_losses,
    implicit_rewards,
    margins_of,
    ranking_losses,
    safety_losses,
)

CHOSEN, REJECTED = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.0, 0.5, 2.0])


def test_ranking_loss_by_hand() -> None:
    # log(1 + e^-d) at differences 1, -1 and 0.
    expected = [0.3132617, 1.3132617, math.log(2)]
    assert ranking_losses(CHOSEN, REJECTED).tolist() == pytest.approx(expected, abs=1e-6)
    # A margin of 1 moves each difference by one: 0, -2, -1.
    expected = [math.log(2), 2.1269280, 1.3132617]
    assert ranking_losses(CHOSEN, REJECTED, 1.0).tolist() == pytest.approx(expected, abs=1e-6)
    # Far off it is the difference itself, and no infinity.
    assert ranking_losses(torch.tensor(-500.0), torch.tensor(500.0)).item() == 1000


def test_margins_are_the_papers() -> None:
    ratings = torch.tensor([0, 1, 2, 3, -1])
    assert len(RATINGS) == 4
    assert margins_of(ratings, "none").tolist() == [0] * 5
    assert margins_of(ratings, "small").tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0, 0])
    assert margins_of(ratings, "large").tolist() == [3, 2, 1, 0, 0]
    with pytest.raises(ValueError, match="no margin 'huge'; there are: none, small, large"):
        margins_of(ratings, "huge")


def test_the_gradient_of_the_ranking_loss() -> None:
    chosen = CHOSEN.clone().requires_grad_()
    ranking_losses(chosen, REJECTED, 1.0).sum().backward()
    assert chosen.grad is not None
    # d/dr = -sigmoid(-(d - m))
    expected = [-0.5, -0.8807971, -0.7310586]
    assert chosen.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_safety_loss_by_hand() -> None:
    logits = torch.tensor([0.0, 2.0, 2.0, 9.0])
    found = safety_losses(logits, torch.tensor([1, 1, 0, -1]))
    # -log sigmoid(0), -log sigmoid(2), -log sigmoid(-2), and nothing without a label.
    assert found.tolist() == pytest.approx([0.6931472, 0.1269280, 2.1269280, 0], abs=1e-6)


def test_dpo_loss_by_hand() -> None:
    # The policy prefers the chosen by 3 nats more than the reference: sigmoid(0.1 * 3).
    given = (
        torch.tensor([-10.0]),
        torch.tensor([-14.0]),
        torch.tensor([-12.0]),
        torch.tensor([-13.0]),
    )
    assert implicit_rewards(given[0], given[2], 0.1).tolist() == pytest.approx([0.2])
    assert implicit_rewards(given[1], given[3], 0.1).tolist() == pytest.approx([-0.1])
    expected = -math.log(1 / (1 + math.exp(-0.3)))
    assert dpo_losses(*given, beta=0.1).tolist() == pytest.approx([expected])
    same = torch.tensor([-3.0])
    assert dpo_losses(same, same, same, same, beta=5.0).item() == pytest.approx(math.log(2))


def random_numbers() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(4)]


@pytest.mark.parametrize("margin", MARGINS)
def test_losses_equal_plain_loops(margin: str) -> None:
    a, b, c, d = random_numbers()
    ratings = [number % 5 - 1 for number in range(50)]
    found = ranking_losses(a, b, margins_of(torch.tensor(ratings), margin))
    for number, rating in enumerate(ratings):
        m = 0.0 if rating < 0 else MARGINS[margin][rating]
        difference = a[number].item() - b[number].item() - m
        assert found[number].item() == pytest.approx(math.log1p(math.exp(-difference)))
    for number, loss in enumerate(dpo_losses(a, b, c, d, beta=0.3).tolist()):
        one, two, three, four = (x[number].item() for x in (a, b, c, d))
        assert loss == pytest.approx(math.log1p(math.exp(-0.3 * ((one - two) - (three - four)))))
