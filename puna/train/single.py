"""A network that one process trains by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from puna.formats.checkpoint import Checkpoint
from puna.formats.network import as_checkpoint
from puna.model import Llama
from puna.parallel.float8 import to_float8
from puna.parallel.fsdp import Box
from puna.parallel.recompute import recompute
from puna.tokenizer import Vocabulary
from puna.train import checkpoints
from puna.train.checkpoints import RunState
from puna.train.contracts import Measure, Stage
from puna.train.loop import Settings

_T = TypeVar("_T")


class Single:
    """The plain case of `contracts.Trainee`."""

    leads, rank, num_ranks = True, 0, 1

    def __init__(self, network: Llama, stage: Stage, settings: Settings) -> None:
        self.network, self._stage, self._settings = network, stage, settings
        if settings.float8:
            to_float8(network)
        blocks = list(network.layers.values())
        recompute(blocks, settings.recompute)
        if settings.compile:  # all blocks share what is compiled for the first
            for block in blocks:
                block.compile()

    @property
    def device(self) -> torch.device:
        return torch.device(self._settings.device)

    def total(self, *values: float) -> list[float]:
        return list(values)

    def largest(self, value: float) -> float:
        return value

    def count(self, num_tokens: int) -> int:
        return num_tokens

    def agreed(self, stop: bool) -> bool:
        return stop

    def accumulate(self, batches: list[Tensor], num_tokens: int) -> float:
        loss = 0.0
        for batch in batches:
            piece = self._loss(batch) / num_tokens
            piece.backward()
            loss += piece.item()
        return loss

    def losses(
        self, batches: Sequence[Tensor], on_batch: Callable[[], None] = lambda: None
    ) -> list[float]:
        sums = []
        for batch in batches:
            on_batch()
            sums.append(self._loss(batch).item())
        return sums

    def measured(
        self, batches: Sequence[Tensor], measure: Measure, on_batch: Callable[[], None]
    ) -> list[Tensor]:
        found = []
        for batch in batches:
            on_batch()
            with autocast(self.device, self._settings.dtype):
                on_device = batch.to(self._settings.device)
                found.append(measure(self.network, self.network, on_device).cpu())
        return found

    def _loss(self, batch: Tensor) -> Tensor:
        with autocast(self.device, self._settings.dtype):
            on_device = batch.to(self._settings.device)
            return self._stage.loss(self.network, self.network, on_device)

    def clip(self, limit: float) -> float:
        return torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit).item()

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
        checkpoints.save(
            run, self.network, optimizer, state, vocabulary, keep=keep, chat_template=chat_template
        )

    def settle(self) -> None:
        """A save is committed when it returns."""

    def everyone(self, value: _T) -> list[_T]:
        return [value]

    def whole(self, vocabulary: Vocabulary) -> Checkpoint:
        return as_checkpoint(self.network, Path("live weights"), vocabulary)

    def box(self, weight: Tensor) -> Box:
        return Box((0,) * weight.ndim, tuple(weight.shape))


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """What matrix products are computed in, `dtype` being that of `Settings`."""
    if dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
