"""What stages on pairs have in common: their pieces, and the batches of a prepared run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.data.pairs import LENGTH, EncodedPairs, PairBatches, trimmed
from puna.train.run_config import RunConfig
from puna.train.running import Share

TRAINED, HELD_OUT = "pairs", "held_out"  # folders of the run


@dataclass(frozen=True, slots=True)
class PairStage:
    """The part of a stage (`contracts.Stage`) that is the same for all. A piece is rows of
    `data.pairs` (pairs, 2, header + T); what its loss is a mean over, and `num_tokens` counts, are
    pairs."""

    batch: Callable[[int], NDArray[np.int64]]
    held_out: EncodedPairs
    micro_batch_size: int

    def micro_batches(self, position: int) -> list[Tensor]:
        pieces = trimmed(self.batch(position), self.micro_batch_size)
        return [torch.from_numpy(piece) for piece in pieces]

    def num_tokens(self, batch: Tensor) -> int:
        return len(batch)

    def num_positions(self, batch: Tensor) -> int:
        return int(batch[:, :, LENGTH].sum())

    def held_out_pieces(self) -> list[Tensor]:
        return [torch.from_numpy(rows) for rows in self.held_out.pieces(self.micro_batch_size)]


def run_pairs(run: Path, config: RunConfig, share: Share) -> tuple[PairBatches, EncodedPairs]:
    """A prepared run's batches for this process, and what is held out."""
    load = functools.partial(EncodedPairs.load, vocab_size=len(share.vocabulary))
    batches = PairBatches(
        load(run / TRAINED),
        batch_size=config.batch_size,
        seed=config.seed,
        rank=share.rank,
        num_ranks=share.num_ranks,
    )
    return batches, load(run / HELD_OUT)
