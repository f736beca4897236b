"""Reward models: which of two answers people prefer, as a score (arXiv 2307.09288, section 3.2).

The next-token head of a chat model gives way to a scalar one, read at the last token of a dialog,
its EOS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.data.pairs import (
    HEADER,
    LENGTH,
    RATING,
    SAFE,
    EncodedPairs,
)  # fmt: skip
from puna.data.preference_mix import MIXES
from puna.formats import Checkpoint
from puna.formats.files import atomic_directory
from puna.heads import heads_of, scalar
from puna.model import Llama
from puna.plan.layout import check_uncut
from puna.tokenizer import Vocabulary
from puna.train.contracts import Evaluation
from puna.train.log import Record
from puna.train.preferences.losses import MARGINS, margins_of, ranking_losses, safety_losses
from puna.train.preferences.metrics import agreement
from puna.train.preferences.pair_stage import HELD_OUT, TRAINED, PairStage, run_pairs
from puna.train.run_config import RunConfig, read_config, write_run
from puna.train.running import Share, run_stage
from puna.train.starting import open_start, start_weights
from puna.train.window_loss import hidden_states

HEADS = {"helpfulness": ("score",), "safety": ("score", "safety")}


@dataclass(frozen=True, slots=True)
class RewardConfig(RunConfig):
    """A reward model's run as resolved. Batches are of pairs; `model` has no next-token head.

    `kind` is one of `data.preference_mix.MIXES`, `margin` of `losses.MARGINS`;
    `safety_weight` that of the auxiliary loss of the kind "safety"; `start` is the path of the
    model that it begins from.
    """

    kind: str = "helpfulness"
    margin: str = "small"
    safety_weight: float = 1.0  # *ours*
    start: str = ""

    stage = "reward"

    def opened_by(self, checkpoint: Path) -> str:
        return f"--evaluate {checkpoint}"

    def __post_init__(self) -> None:
        if self.kind not in MIXES:
            raise ValueError(f"kind is {' or '.join(MIXES)}, not {self.kind!r}")
        check_uncut(self.layout, "stages on pairs")
        if self.margin not in MARGINS:
            raise ValueError(f"margin is {', '.join(MARGINS)}, not {self.margin!r}")
        if not self.safety_weight >= 0:
            raise ValueError(f"safety_weight must be 0 or more, not {self.safety_weight}")
        RunConfig.__post_init__(self)


@dataclass(frozen=True, slots=True)
class Reward(PairStage):
    """The stage: the ranking loss of scores, and the safety head's loss."""

    margin: str = "small"
    safety_weight: float = 1.0

    def loss(self, model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
        hidden = last_states(model, batch)
        chosen, rejected = scalar(network, "score", hidden).unbind(1)
        margins = margins_of(batch[:, 0, RATING], self.margin)
        loss = ranking_losses(chosen, rejected, margins).sum()
        if "safety" in heads_of(network):
            # Of a pair, the mean of its two answers.
            losses = safety_losses(scalar(network, "safety", hidden), batch[:, :, SAFE])
            loss = loss + self.safety_weight * losses.mean(1).sum()
        return loss

    def evaluate(self, evaluation: Evaluation) -> Record:
        """On the held-out pairs: mean loss, and what `metrics.agreement` tells; of the
        safety head, how many of the labelled answers it is right about. Nothing without pairs."""
        pieces = self.held_out_pieces()
        if not pieces:
            return {}
        loss = sum(evaluation(pieces)) / len(self.held_out)
        scores = torch.cat(evaluation.measured(pieces, scores_of))
        facts = torch.cat([piece[:, :, :HEADER] for piece in pieces])
        difference = (scores[:, 0, 0] - scores[:, 1, 0]).tolist()
        found = agreement(difference, facts[:, 0, RATING].tolist())
        record: Record = {"held_out_loss": loss, "held_out_accuracy": found["accuracy"]}
        record["held_out"] = found
        labels = facts[:, :, SAFE]
        if scores.shape[2] > 1 and (labels >= 0).any():
            right = (scores[:, :, 1] > 0) == (labels == 1)
            record["held_out_safety_accuracy"] = right[labels >= 0].double().mean().item()
        return record


def last_states(model: Callable[..., Tensor], batch: Tensor) -> Tensor:
    """The hidden states (pairs, 2, D) of the last token of each dialog of a piece.

    Dialogs that are the same, as in several comparisons of one prompt's answers, are run once.
    """
    dialogs = batch.flatten(0, 1)
    inputs = torch.cat([dialogs[:, [LENGTH]], dialogs[:, HEADER:]], dim=1)
    inputs, which = inputs.unique(dim=0, return_inverse=True)
    lengths, ids = inputs[:, 0], inputs[:, 1:]
    # Padding follows what is read, which does not look at it.
    hidden = hidden_states(model, ids, None)
    last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
    return last[which].unflatten(0, (len(batch), 2))


def scores_of(model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
    """What the heads say of a piece, (pairs, 2, heads)."""
    hidden = last_states(model, batch)
    return torch.stack([scalar(network, head, hidden) for head in heads_of(network)], dim=-1)


def warmup_steps(steps: int) -> int:
    """Of a reward model's run: 3 % of the steps, at least 5 where there are so many (3.2.2)."""
    return min(steps, max(5, round(0.03 * steps)))


def prepare(
    run: Path, config: RunConfig, trained: EncodedPairs, held_out: EncodedPairs,
    vocabulary: Vocabulary,
) -> None:  # fmt: skip
    """Makes the run's folder: config, tokenizer, encoded pairs. Nothing is left if it fails."""
    with atomic_directory(run) as folder:
        trained.save(folder / TRAINED)
        held_out.save(folder / HELD_OUT)
        write_run(folder, config, vocabulary)


def reward(run: Path, *, parallel: str | None = None, **options: Any) -> bool:
    """Starts or continues a prepared run; `options` are those of `running.run_stage`, `parallel`
    another layout than the run's own. Returns False if a signal stopped it early."""
    config = read_config(run, RewardConfig, parallel)

    def make_stage(share: Share) -> Reward:
        batches, held_out = run_pairs(run, config, share)
        return Reward(
            share.ahead(batches.batch),
            held_out,
            config.micro_batch_size,
            config.margin,
            config.safety_weight,
        )

    weights = functools.partial(_first_weights, config)
    return run_stage(run, config, make_stage, weights, heads=HEADS[config.kind], **options)


def _first_weights(config: RewardConfig, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    start = open_start(config.start)
    check_start(start, config)
    for name in names:
        if name in start.tensors:
            yield from start_weights(start, [name])
        else:  # *ours*: a new head is 0, as `heads.attach` makes it
            yield name, torch.zeros(config.model.head_shapes()[name])


def check_start(start: Checkpoint, config: RunConfig) -> None:
    """ValueError unless this is the model that a run was prepared for, whatever its head."""
    if replace(start.config, tied=config.model.tied) != config.model:
        raise ValueError(f"{start.path} is not the model that the run was prepared for")
