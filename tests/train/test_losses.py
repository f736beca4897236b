"""The loss by hand."""

from __future__ import annotations

import math

import pytest
import torch

from puna.train.losses import next_token_loss_sum
from puna.train.plot import smooth


def test_next_token_loss_sum() -> None:
    # p = (1/2, 1/4, 1/4) and (1/8, 3/4, 1/8): -log of the targets' is log 4 and log 4/3.
    logits = torch.log(torch.tensor([[[2.0, 1.0, 1.0], [1.0, 6.0, 1.0]]]))
    targets = torch.tensor([[2, 1]])
    expected = math.log(4) + math.log(4 / 3)
    assert next_token_loss_sum(logits, targets).item() == pytest.approx(expected)
    assert next_token_loss_sum(logits + 7, targets).item() == pytest.approx(expected, rel=1e-5)
    assert next_token_loss_sum(logits.bfloat16(), targets).dtype == torch.float32


def test_smooth() -> None:
    # Weighted means of all so far, each 1/2 of the one after it.
    assert smooth([3.0, 0.0, 7.0], weight=0.5) == pytest.approx([3, 1, 31 / 7])
