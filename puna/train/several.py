"""A network that several processes train together, in any layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from puna.formats.checkpoint import Checkpoint
from puna.formats.network import weights_as_checkpoint
from puna.model import Llama
from puna.parallel.fsdp import Box, box_of, local, square_norm, unsharded
from puna.parallel.part import Part
from puna.parallel.pipeline import Schedule, forward_only, make_schedule
from puna.tokenizer import Vocabulary
from puna.train.checkpoints import RunState, moments_of
from puna.train.contracts import Measure, Stage, WindowedStage
from puna.train.losses import chunked_next_token_loss_sum
from puna.train.sharded_saves import Facts, Saves

_T = TypeVar("_T")


class Several:
    """`contracts.Trainee` of one rank. Its stage gives this data rank's share of each batch.

    The loss is the next-token loss over a stage's windows, with the logits of `loss_chunk` tokens
    at once (0: of all). A stage without windows computes its own, where no rank has a part of one
    or of a layer (dp, fsdp). Every rank makes the same calls in the same order.
    """

    def __init__(self, part: Part, stage: Stage, *, loss_chunk: int = 0) -> None:
        self.part, self.place, self._stage = part, part.place, stage
        self._loss_chunk = loss_chunk
        self._schedules: dict[tuple[int, ...], Schedule] = {}
        self._saves = Saves()
        self._num_tokens = 1

    @property
    def _sharded(self) -> list[FSDPModule]:
        return [cast(FSDPModule, chunk) for chunk in self.part.chunks]

    @property
    def network(self) -> Llama:
        return self.part.network

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return self.place.device

    @property
    def num_ranks(self) -> int:
        return self.place.layout.num_ranks

    def total(self, *values: float) -> list[float]:
        return self.place.total(*values)

    def largest(self, value: float) -> float:
        return self.place.largest(value)

    def count(self, num_tokens: int) -> int:
        layout = self.place.layout
        (total,) = self.place.total(num_tokens)
        return round(total) // (layout.num_ranks // layout.num_data_ranks)

    def agreed(self, stop: bool) -> bool:
        # A save that failed is told by the one that a stop makes.
        return self.place.total(stop or self._saves.failed)[0] > 0

    def accumulate(self, batches: list[Tensor], num_tokens: int) -> float:
        self._num_tokens = num_tokens
        if self.place.layout.pp > 1:
            loss = self._pipelined(batches)
        else:
            loss = 0.0
            for number, batch in enumerate(batches):
                if self.place.layout.dp > 1:  # replicas add up once, after the last piece
                    self._sharded[0].set_requires_all_reduce(number == len(batches) - 1)
                piece = self._piece_loss(batch) / num_tokens
                piece.backward()
                loss += piece.item()
        return self._over_ranks(loss)

    @torch.no_grad()
    def losses(
        self, batches: Sequence[Tensor], on_batch: Callable[[], None] = lambda: None
    ) -> list[float]:
        """Sum of the loss over each piece; every data rank takes its share of them.

        As many forward passes on all ranks, since these gather weights together: where the pieces
        do not divide, some count for nothing.
        """
        if not batches:
            return []
        num_ranks = self.place.layout.num_data_ranks
        sums = [0.0] * len(batches)
        for first in range(0, len(batches), num_ranks):
            on_batch()
            number = first + self.place.data_rank
            loss = self._forward_loss(batches[min(number, len(batches) - 1)])
            if number < len(batches):
                sums[number] = loss / self.place.layout.tp
        self._reshard()
        return self.place.total(*sums)

    @torch.no_grad()
    def measured(
        self, batches: Sequence[Tensor], measure: Measure, on_batch: Callable[[], None]
    ) -> list[Tensor]:
        """Every data rank takes its share of the pieces, as in `losses`."""
        found: dict[int, Tensor] = {}
        for first in range(0, len(batches), self.place.layout.num_data_ranks):
            on_batch()
            number = min(first + self.place.data_rank, len(batches) - 1)
            batch = batches[number].to(self.place.device)
            found[number] = measure(self.part.chunks[0], self.network, batch).cpu()
        self._reshard()
        together = {n: x for part in self.place.everyone(found) for n, x in part.items()}
        return [together[number] for number in range(len(batches))]

    def _piece_loss(self, batch: Tensor) -> Tensor:
        """The sum of the loss over this rank's part of a piece; not in a pipeline."""
        if not isinstance(self._stage, WindowedStage):
            batch = batch.to(self.place.device)
            return self._stage.loss(self.part.chunks[0], self.network, batch)
        tokens, targets, positions, mask = self._windows(batch)
        return self._loss_sum(self.part.chunks[0](tokens, positions, mask), targets)

    def _forward_loss(self, batch: Tensor) -> float:
        """The sum of the loss over this rank's part of a piece, on the last stage; else 0."""
        if self.place.layout.pp == 1:
            return self._piece_loss(batch).item()
        tokens, targets, positions, mask = self._windows(batch)
        memory = self.part.hidden_like(tokens)
        hidden = forward_only(self.part.chunks, self.place, tokens, memory, positions, mask)
        if not self.place.has_last_stage:
            return 0.0
        return self._loss_sum(hidden, targets).item()

    def clip(self, limit: float) -> float:
        parameters = list(self.network.parameters())
        norm = self.place.total(square_norm(parameters))[0] ** 0.5
        scale = min(1.0, limit / (norm + 1e-6))
        for parameter in parameters:
            if parameter.grad is not None:
                local(parameter.grad).mul_(scale)
        return norm

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
        """Each rank writes its own shares, behind training unless it is to `wait`."""
        self._reshard()
        weights = dict(self.network.named_parameters())
        moments = dict(moments_of(self.network, optimizer))
        facts = Facts(run, self.network.config, state, vocabulary, keep, chat_template)
        self._saves.begin(facts, weights | moments)
        if wait:
            self._saves.wait()

    def settle(self) -> None:
        self._saves.wait()

    def everyone(self, value: _T) -> list[_T]:
        return self.place.everyone(value)

    def whole(self, vocabulary: Vocabulary) -> Checkpoint:
        self._reshard()
        weights = {name: unsharded(weight) for name, weight in self.network.named_parameters()}
        config = self.network.config
        return weights_as_checkpoint(config, weights, Path("live weights"), vocabulary)

    def box(self, weight: Tensor) -> Box:
        return box_of(weight, self.place)

    def _reshard(self) -> None:
        """Lets go of gathered weights, which a forward pass of a pipeline leaves in their place."""
        for chunk in self.part.chunks:
            for module in chunk.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def _windows(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        assert isinstance(self._stage, WindowedStage)  # others are trained with dp and fsdp alone
        return self.part.windows(*self._stage.windows(batch.to(self.place.device)))

    def _pipelined(self, batches: list[Tensor]) -> float:
        tokens, targets, positions, mask = self._windows(torch.cat(batches))
        shape = (len(batches), len(batches[0]), tokens.shape[1])
        if shape not in self._schedules:
            self._schedules[shape] = make_schedule(
                self.part.schedule,
                self.part.chunks,
                self.place,
                self._mean_loss,
                num_pieces=shape[0],
                tokens=shape[1:],
                hidden=self.part.hidden_like(tokens[: shape[1]]),
            )
        options: dict[str, Any] = {"positions": positions}
        if mask is not None:
            options["mask"] = mask
        losses: list[Tensor] = []
        inputs = (tokens,) if self.place.stage == 0 else ()
        target = targets if self.place.has_last_stage else None
        self._schedules[shape].step(
            *inputs, target=target, losses=losses, return_outputs=False, **options
        )
        return sum(loss.item() for loss in losses)

    def _mean_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return self._loss_sum(hidden, targets) / self._num_tokens

    def _loss_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return chunked_next_token_loss_sum(
            hidden,
            self.part.head(),
            targets,
            chunk=self._loss_chunk,
            group=self.place.tensor,
        )

    def _over_ranks(self, loss: float) -> float:
        """The sum over windows and their parts; ranks of a tensor group have the same loss."""
        return self.place.total(loss / self.place.layout.tp)[0]
