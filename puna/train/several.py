"""A network that several processes train together, in any layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from puna.formats.checkpoint import Checkpoint
from puna.formats.network import read_tensor
from puna.model import Llama
from puna.parallel.fsdp import local, share_of, square_norm, whole_of
from puna.parallel.part import Part
from puna.parallel.pipeline import Schedule, forward_only, make_schedule
from puna.tokenizer import Vocabulary
from puna.train import checkpoints
from puna.train.checkpoints import RunState
from puna.train.loop import Stage
from puna.train.losses import chunked_next_token_loss_sum


class Several:
    """`loop.Trainee` of one rank. Its stage gives this data rank's share of each batch.

    The loss is the next-token loss over `Stage.windows`, with the logits of `loss_chunk` tokens at
    once (0: of all). Every rank makes the same calls in the same order.
    """

    def __init__(self, part: Part, stage: Stage, *, loss_chunk: int = 0) -> None:
        self.part, self.place, self._stage = part, part.place, stage
        self._loss_chunk = loss_chunk
        self._schedules: dict[tuple[int, ...], Schedule] = {}
        self._num_tokens = 1

    @property
    def _sharded(self) -> list[FSDPModule]:
        return [cast(FSDPModule, chunk) for chunk in self.part.chunks]

    @property
    def network(self) -> Llama:
        return self.part.network

    @property
    def leads(self) -> bool:
        return self.place.rank == 0

    def count(self, num_tokens: int) -> int:
        layout = self.place.layout
        (total,) = self.place.total(num_tokens)
        return round(total) // (layout.num_ranks // layout.num_data_ranks)

    def agreed(self, stop: bool) -> bool:
        return self.place.total(stop)[0] > 0

    def accumulate(self, batches: list[Tensor], num_tokens: int) -> float:
        self._num_tokens = num_tokens
        if self.place.layout.pp > 1:
            loss = self._pipelined(batches)
        else:
            loss = 0.0
            for number, batch in enumerate(batches):
                if self.place.layout.dp > 1:  # replicas add up once, after the last piece
                    self._sharded[0].set_requires_all_reduce(number == len(batches) - 1)
                tokens, targets, positions, mask = self._windows(batch)
                hidden = self.part.chunks[0](tokens, positions, mask)
                piece = self._mean_loss(hidden, targets)
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
        for chunk in self._sharded:
            chunk.reshard()
        return self.place.total(*sums)

    def _forward_loss(self, batch: Tensor) -> float:
        """The sum of the loss over this rank's part of a piece, on the last stage; else 0."""
        tokens, targets, positions, mask = self._windows(batch)
        if self.place.layout.pp > 1:
            memory = self.part.hidden_like(tokens)
            hidden = forward_only(self.part.chunks, self.place, tokens, memory, positions, mask)
        else:
            hidden = self.part.chunks[0](tokens, positions, mask)
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
    ) -> None:
        """Gathers everything on the first rank, which writes it."""
        weights = self.gathered(self.network.named_parameters())
        moments = self.gathered(checkpoints.moments_of(self.network, optimizer))
        if self.leads:
            in_order = {name: weights[name] for name in self.network.config.tensor_shapes()}
            checkpoints.save(
                run, self.network.config, in_order, moments, state, vocabulary, keep=keep
            )
        dist.barrier()

    def load_weights(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.tensors
        self.part.fill((name, read_tensor(saved[name])) for name in self.part.names())

    def load_optimizer(self, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
        def share(whole: Tensor, weight: Tensor) -> Tensor:
            moment = torch.zeros_like(weight)
            local(moment).copy_(share_of(whole, weight, self.place))
            return moment

        checkpoints.load_optimizer(checkpoint, self.network, optimizer, share)

    def gathered(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Whole tensors of all stages, on the first rank's CPU; other ranks get none of them."""
        kept: dict[str, Tensor] = {}
        first_of_stage = (
            self.place.rank % (self.place.layout.num_ranks // self.place.layout.pp) == 0
        )
        for name, tensor in tensors:
            whole = whole_of(tensor, self.place)
            if first_of_stage:
                kept[name] = whole.detach().cpu()
        if self.place.layout.pp == 1:
            return kept if self.leads else {}
        group = self.place.mesh.get_group("pp")
        parts: list[dict[str, Tensor] | None] = [None] * self.place.layout.pp
        if first_of_stage:
            dist.gather_object(kept, parts if self.leads else None, group=group, group_dst=0)
        return {name: x for part in parts if part for name, x in part.items()}

    def _windows(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
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
