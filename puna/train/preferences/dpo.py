"""Direct preference optimization (arXiv 2305.18290): a policy out of pairs, without a reward model.

What the frozen model says of the answers is worked out before training, and kept with the run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from puna.chat import LLAMA2_TEMPLATE
from puna.data.pairs import ANSWER, HEADER, LENGTH, RATING, REFERENCE, EncodedPairs
from puna.heads import next_token_logits
from puna.model import Llama, widened
from puna.plan.layout import check_uncut
from puna.train.contracts import Evaluation
from puna.train.log import Record
from puna.train.preferences.losses import dpo_losses, implicit_rewards
from puna.train.preferences.metrics import agreement
from puna.train.preferences.pair_stage import PairStage, run_pairs
from puna.train.run_config import RunConfig, read_config
from puna.train.running import Share, run_stage
from puna.train.single import autocast
from puna.train.starting import open_start, start_network, start_weights
from puna.train.window_loss import hidden_states


@dataclass(frozen=True, slots=True)
class DPOConfig(RunConfig):
    """A run as resolved. Batches are of pairs; `beta` is how much a policy's distance from the
    model that it begins from, `start`, counts."""

    beta: float = 0.1
    start: str = ""

    stage = "dpo"

    def __post_init__(self) -> None:
        check_uncut(self.layout, "stages on pairs")
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be positive, not {self.beta}")
        RunConfig.__post_init__(self)


@dataclass(frozen=True, slots=True)
class DPO(PairStage):
    """The stage: the loss of implicit rewards. A piece has the reference's log-probabilities."""

    beta: float = 0.1

    def loss(self, model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
        chosen, rejected = answer_logprobs(model, network, batch).unbind(1)
        reference = reference_of(batch).to(chosen)
        return dpo_losses(chosen, rejected, reference[:, 0], reference[:, 1], self.beta).sum()

    def evaluate(self, evaluation: Evaluation) -> Record:
        """On the held-out pairs: mean loss, what `metrics.agreement` tells of the
        implicit rewards, their mean margin and those of chosen answers. Nothing without pairs."""
        pieces = self.held_out_pieces()
        if not pieces:
            return {}
        loss = sum(evaluation(pieces)) / len(self.held_out)
        logprobs = torch.cat(evaluation.measured(pieces, answer_logprobs)).double()
        reference = torch.cat([reference_of(piece) for piece in pieces])
        rewards = implicit_rewards(logprobs, reference, self.beta)
        margins = rewards[:, 0] - rewards[:, 1]
        ratings = [rating for piece in pieces for rating in piece[:, 0, RATING].tolist()]
        found = agreement(margins.tolist(), ratings)
        return {
            "held_out_loss": loss,
            "held_out_accuracy": found["accuracy"],
            "held_out_margin": margins.mean().item(),
            "held_out_chosen_reward": rewards[:, 0].mean().item(),
            "held_out": found,
        }


def answer_logprobs(model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
    """The log-probability of each answer of a piece, EOS included, given its prompt (pairs, 2)."""
    rows = batch.flatten(0, 1)
    ids, lengths, answers = rows[:, HEADER:], rows[:, LENGTH, None], rows[:, ANSWER, None]
    hidden = hidden_states(model, ids, None)
    # What is at a place is said by the one before.
    places = torch.arange(ids.shape[1], device=ids.device)
    asked = ((places >= answers) & (places < lengths))[:, 1:]
    logits = widened(next_token_logits(network, hidden[:, :-1][asked]))
    chosen = logits.log_softmax(-1).gather(1, ids[:, 1:][asked][:, None])[:, 0]
    dialog = asked.nonzero()[:, 0]
    sums = chosen.new_zeros(len(ids)).index_add(0, dialog, chosen)
    return sums.unflatten(0, (len(batch), 2))


def reference_of(batch: Tensor) -> Tensor:
    """The reference's log-probabilities that a piece carries, (pairs, 2) float64."""
    return batch[:, :, REFERENCE].contiguous().view(torch.float64)


@torch.no_grad()
def with_reference(
    pairs: EncodedPairs,
    network: Llama,
    *,
    dtype: str,
    micro_batch_size: int,
    on_pair: Callable[[], None] = lambda: None,
) -> EncodedPairs:
    """The pairs with what a frozen network says of their answers, computed as in training."""
    found = np.zeros((len(pairs), 2))
    order = pairs.by_length(np.arange(len(pairs)))
    device = network.norm.weight.device
    for first in range(0, len(pairs), micro_batch_size):
        numbers = order[first : first + micro_batch_size]
        batch = torch.from_numpy(pairs.rows(numbers)).to(device)
        with autocast(device, dtype):
            found[numbers] = answer_logprobs(network, network, batch).cpu().numpy()
        for _ in numbers:
            on_pair()
    if not np.isfinite(found).all():
        raise ValueError(
            "the model to begin from gives answers no finite probability: it is broken"
        )
    return pairs.with_reference(found)


def load_reference(config: DPOConfig) -> Llama:
    """The frozen network that a run begins from, on its device."""
    return start_network(open_start(config.start), config.settings.device)


def dpo(run: Path, *, parallel: str | None = None, **options: Any) -> bool:
    """Starts or continues a run that `reward.prepare` made; `options` are those of
    `running.run_stage`, `parallel` another layout than the run's own. Returns False if a signal
    stopped it early."""
    config = read_config(run, DPOConfig, parallel)

    def make_stage(share: Share) -> DPO:
        batches, held_out = run_pairs(run, config, share)
        return DPO(share.ahead(batches.batch), held_out, config.micro_batch_size, config.beta)

    weights = functools.partial(_first_weights, config)
    return run_stage(run, config, make_stage, weights, chat_template=LLAMA2_TEMPLATE, **options)


def _first_weights(config: DPOConfig, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    start = open_start(config.start)
    if start.config != config.model:
        raise ValueError(f"{config.start} is not the model that the run was prepared for")
    return start_weights(start, names)
