"""Losses on pairs against TRL's: the methods of its trainers, with what they need of a trainer.

pip install --no-deps trl accelerate psutil
pytest -m peers tests/peers/test_trl_losses.py
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from puna.train.preferences.losses import MARGINS, dpo_losses, margins_of, ranking_losses

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),
]
PAIRS, TOKENS = 20, 7


def random_numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def trainer(**facts: Any) -> Any:
    """What TRL's methods ask of `self`; its metrics go nowhere."""
    made = MagicMock(model=SimpleNamespace(training=False), _total_train_tokens=0, _tp_size=1)
    made._metrics = defaultdict(lambda: defaultdict(list))
    made.accelerator.gather = made.accelerator.gather_for_metrics = lambda x: x
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("size", MARGINS)
def test_the_margin_loss(size: str) -> None:
    module = pytest.importorskip("trl.trainer.reward_trainer", exc_type=ImportError)
    scores, margins = random_numbers(2 * PAIRS, 1), margins_of(torch.arange(PAIRS) % 5 - 1, size)
    self = trainer(args=SimpleNamespace(center_rewards_coefficient=None))
    theirs = module.RewardTrainer.compute_loss(
        self, lambda **_: SimpleNamespace(logits=scores), {"margin": margins}
    )
    ours = ranking_losses(*scores[:, 0].chunk(2), margins)
    torch.testing.assert_close(ours.mean(), theirs)


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_the_dpo_loss(beta: float) -> None:
    module = pytest.importorskip("trl.trainer.dpo_trainer", exc_type=ImportError)
    logprobs, reference = (
        -random_numbers(2 * PAIRS, TOKENS).square(),
        -random_numbers(2, PAIRS).square(),
    )
    outputs = MagicMock(log_probs=logprobs, entropy=logprobs, mean_logits=logprobs)
    outputs.is_top1 = logprobs > 0
    ids = torch.ones(2 * PAIRS, TOKENS + 1, dtype=torch.long)
    self = trainer(
        beta=beta, precompute_ref_logps=True, ld_alpha=None, f_divergence_type="reverse_kl",
        loss_types=["sigmoid"], loss_weights=[1.0], use_weighting=False, aux_loss_enabled=False,
    )  # fmt: skip
    inputs = {"input_ids": ids, "completion_mask": ids, "attention_mask": ids}
    inputs |= {"ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1]}
    theirs = module.DPOTrainer._compute_loss(self, lambda **_: outputs, inputs, False)
    ours = dpo_losses(*logprobs.sum(1).chunk(2), *reference, beta=beta)
    torch.testing.assert_close(ours.mean(), theirs)
