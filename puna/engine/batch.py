"""What the scheduler hands to a runner: the rows of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from puna.config import ModelConfig

if TYPE_CHECKING:
    from puna.formats.adapters import Pair
    from puna.formats.checkpoint import LazyTensor

NO_TOKEN = -1  # where there is none


class Draw(NamedTuple):
    """How a step chooses a token by itself; the parameters are those of `SamplingParams`.

    `uniform` is the random number, in [0, 1). Only ids below `vocab_size` can be chosen: the rows
    of a padded embedding after these stand for nothing.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float
    vocab_size: int


def greedy(vocab_size: int) -> Draw:
    """Takes the likeliest token."""
    return Draw(0.0, 0, 1.0, 0.0, 0.0, vocab_size)


def _no_rows() -> NDArray[np.int32]:
    return np.empty(0, np.int32)


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
    outputs: NDArray[np.int32]  # (L,) rows after which a token is wanted
    copies: tuple[tuple[int, int], ...] = ()  # pages (from, to) to copy before the step
    # (S,) the slot of each sequence's adapter, -1 for none; None where no sequence has one.
    adapters: NDArray[np.int32] | None = None
    # Of each output, how its token is drawn, None where its logits are wanted; () for all logits.
    draws: tuple[Draw | None, ...] = ()
    hidden: NDArray[np.int32] = field(default_factory=_no_rows)  # (N,) rows whose state is wanted


@dataclass(frozen=True, slots=True)
class Output:
    """What a step gives: tokens of the outputs with a draw, logits of those without.

    A token is NO_TOKEN where the output has no draw, or the highest logit was not finite. Hidden
    states are those that a head is given, after the last norm.
    """

    tokens: NDArray[np.int32]  # (L,)
    logits: NDArray[np.float32]  # (L', V) of the L' outputs without a draw, in their order
    hidden: NDArray[np.float32]  # (N, D) of the rows `batch.hidden`

    def answers(self, batch: Batch, vocab_size: int) -> list[Answer]:
        """What there is for each output of the batch; logits of the first `vocab_size` tokens."""
        rows = iter(self.logits[:, :vocab_size])
        if not batch.draws:
            return list(rows)
        return [
            next(rows) if draw is None else token
            for draw, token in zip(batch.draws, self.tokens.tolist(), strict=True)
        ]


Answer = int | NDArray[np.float32]  # a drawn token, or the logits (V,) to choose one from


class Runner(Protocol):
    """Runs a model over batches; owns the pages of keys and values.

    Not for several threads at once.
    """

    config: ModelConfig
    page_size: int
    num_pages: int

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of a token."""
        ...

    def step(self, batch: Batch) -> Output:
        """Runs all rows; tokens and logits of `batch.outputs`, states of `batch.hidden`."""
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
