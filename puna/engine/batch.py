"""What the scheduler hands to a runner: the rows of one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step: new tokens of several sequences, one sequence after another.

    The token at position p of a sequence is kept in page `tables[s, p // page_size]`, and attends
    to all positions up to and including its own.
    """

    tokens: NDArray[np.int32]  # (R,)
    positions: NDArray[np.int32]  # (R,)
    sequences: NDArray[np.int32]  # (R,) which row of `tables` a token belongs to
    tables: NDArray[np.int32]  # (S, P) pages of each sequence, in order, padded with 0
    outputs: NDArray[np.int32]  # (L,) rows whose logits are wanted
    copies: tuple[tuple[int, int], ...] = ()  # pages (from, to) to copy before the step


class Runner(Protocol):
    """Runs a model over batches; owns the pages of keys and values."""

    config: ModelConfig
    page_size: int
    num_pages: int

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """Logits (L, V) of the rows `batch.outputs`."""
        ...
