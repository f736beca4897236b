"""What the scheduler hands to a runner: the rows of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.config import ModelConfig
from puna.formats.adapters import Pair
from puna.formats.checkpoint import LazyTensor


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
    # (S,) the slot of each sequence's adapter, -1 for none; None where no sequence has one.
    adapters: NDArray[np.int32] | None = None


class Runner(Protocol):
    """Runs a model over batches; owns the pages of keys and values.

    Not for several threads at once.
    """

    config: ModelConfig
    page_size: int
    num_pages: int

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """Logits (L, V) of the rows `batch.outputs`."""
        ...

    def load_adapter(self, slot: int, pairs: Mapping[str, Pair]) -> None:
        """Sequences of `slot` run with b (a x) added to what these matrices give.

        The pairs fit the model (`formats.adapters.read_pairs`); the slot is free.
        """
        ...

    def unload_adapter(self, slot: int) -> None:
        """The slot is free again."""
        ...

    def update(self, weights: Mapping[str, LazyTensor]) -> None:
        """Runs with these weights, all or some of them, from now on; pages stay as they are.

        They fit the model (`check_update`).
        """
        ...


def check_update(config: ModelConfig, weights: Mapping[str, LazyTensor]) -> None:
    """ValueError unless a model of this shape has tensors of such names and shapes."""
    shapes = config.tensor_shapes()
    for name, tensor in weights.items():
        if shapes.get(name) != tensor.shape:
            held = f"has {shapes[name]} there" if name in shapes else "has no such tensor"
            raise ValueError(f"{name} of shape {tensor.shape} is no update: the model {held}")
