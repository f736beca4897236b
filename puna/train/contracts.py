"""What the loop needs of a stage and of a trainee: how they differ is theirs alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from puna.formats.checkpoint import Checkpoint
from puna.model import Llama
from puna.parallel.fsdp import Box
from puna.tokenizer import Vocabulary
from puna.train.checkpoints import RunState
from puna.train.log import Record

_T = TypeVar("_T")
# (the network, perhaps compiled; the network; a piece) -> numbers
Measure = Callable[[Callable[..., Tensor], Llama, Tensor], Tensor]


class Stage(Protocol):
    """What differs between stages."""

    def micro_batches(self, position: int) -> list[Tensor]:
        """The batch at a position of the data, in pieces that fit the memory; a function of
        `position` alone, which is that of a step and of the batches skipped before it."""
        ...

    def loss(self, model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
        """Sum of the loss over a piece. `model` is `network`, perhaps compiled."""
        ...

    def num_tokens(self, batch: Tensor) -> int:
        """Tokens, or pairs, of a piece that the loss sums over."""
        ...

    def evaluate(self, losses: Evaluation) -> Record:
        """Metrics on held-out data; `losses` gives the sum of the loss over each of some pieces,
        as the training step computes it, and more."""
        ...


@runtime_checkable
class OfPairs(Protocol):
    """A stage whose loss sums over other things than all tokens: pairs, or answers alone."""

    def num_positions(self, batch: Tensor) -> int:
        """Tokens of a piece that go through the network, for the log."""
        ...


@runtime_checkable
class WindowedStage(Stage, Protocol):
    """One whose loss is the next-token loss of windows: several ranks compute it in any layout."""

    def windows(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of a piece, for several ranks to share: token ids and targets (B, T), and a mask
        (B, 1, T, T) of what may look at what, None where that is plainly causal."""
        ...


class Trainee(Protocol):
    """A network being trained, by one process (`single.py`) or several (`several.py`)."""

    @property
    def network(self) -> Llama:
        """The network, or this rank's part of it, for the optimizer."""
        ...

    @property
    def rank(self) -> int:
        """Which of the processes this is."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this process keeps the log; one does."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    @property
    def num_ranks(self) -> int:
        """How many processes train together."""
        ...

    def total(self, *values: float) -> list[float]:
        """The sums of values over all ranks."""
        ...

    def largest(self, value: float) -> float:
        """The largest value of any rank."""
        ...

    def count(self, num_tokens: int) -> int:
        """The number of tokens over all ranks, where this one has `num_tokens`."""
        ...

    def agreed(self, stop: bool) -> bool:
        """Whether any rank is to stop."""
        ...

    def accumulate(self, batches: list[Tensor], num_tokens: int) -> float:
        """Adds up the gradients of the mean loss over `num_tokens`, all ranks'; that loss."""
        ...

    def losses(
        self, batches: Sequence[Tensor], on_batch: Callable[[], None] = lambda: None
    ) -> list[float]:
        """Sum of the loss over each of some pieces that all ranks have, which share the work."""
        ...

    def measured(
        self, batches: Sequence[Tensor], measure: Measure, on_batch: Callable[[], None]
    ) -> list[Tensor]:
        """What `measure` gives for each of some pieces, of which all ranks share the work and have
        all results, on the CPU."""
        ...

    def clip(self, limit: float) -> float:
        """Scales the gradients to a norm of `limit` at most; the norm of all of them before."""
        ...

    def save(
        self,
        run: Path,
        optimizer: torch.optim.Optimizer,
        state: RunState,
        vocabulary: Vocabulary,
        *,
        keep: int,
        wait: bool,
        chat_template: str | None = None,
    ) -> None:
        """Begins a checkpoint of the run, and may go on writing it unless it is to `wait`.

        CheckpointError where this one, or the one begun before, could not be written.
        """
        ...

    def settle(self) -> None:
        """Waits until what is being saved is committed; CheckpointError as `save`."""
        ...

    def everyone(self, value: _T) -> list[_T]:
        """Each rank's value, by rank."""
        ...

    def whole(self, vocabulary: Vocabulary) -> Checkpoint:
        """The weights of all ranks, with LoRA pairs merged, for an engine in each process, which
        has to hold them; to be read before the next step. Not of a pipeline."""
        ...

    def box(self, weight: Tensor) -> Box:
        """Which part of a whole weight this process has, where `weight` is what it has."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a stage evaluates with: losses of pieces, and whatever else it measures of them.

    `on_batch` is called before each.
    """

    trainee: Trainee
    on_batch: Callable[[], None]

    def __call__(self, batches: Sequence[Tensor]) -> list[float]:
        return self.trainee.losses(batches, on_batch=self.on_batch)

    def measured(self, batches: Sequence[Tensor], measure: Measure) -> list[Tensor]:
        return self.trainee.measured(batches, measure, self.on_batch)
