"""A runner in several processes: the first schedules, the others run the same batches.

Only the first has an engine; it sends each batch before it runs its own share.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from puna.engine.batch import Batch, Output
from puna.engine.gpu.runner import GPURunner
from puna.formats.adapters import Pair
from puna.formats.checkpoint import LazyTensor
from puna.parallel.ranks import Ranks


class LeadingRunner:
    """The first process's runner. When it is let go of, or the program ends, so do the others."""

    def __init__(self, runner: GPURunner, ranks: Ranks) -> None:
        self._runner, self._ranks = runner, ranks
        self.config, self.num_pages = runner.config, runner.num_pages
        self.page_size, self.token_bytes = runner.page_size, runner.token_bytes
        self._end = weakref.finalize(self, _send, None, ranks)

    def step(self, batch: Batch) -> Output:
        """As the runner's own."""
        _send(batch, self._ranks)
        return self._runner.step(batch)

    def load_adapter(self, slot: int, pairs: Mapping[str, Pair]) -> None:
        """As the runner's own, which takes none."""
        self._runner.load_adapter(slot, pairs)

    def unload_adapter(self, slot: int) -> None:
        """As the runner's own."""
        self._runner.unload_adapter(slot)

    def update(self, weights: Mapping[str, LazyTensor]) -> None:
        """ValueError: the other processes would keep the old ones."""
        raise ValueError("weights that processes share cannot be updated; load the model anew")

    def close(self) -> None:
        """Ends the other processes."""
        self._end()


def follow(runner: GPURunner, ranks: Ranks) -> None:
    """Runs what the first process sends, until that ends."""
    received: list[Any] = [None]
    while True:
        dist.broadcast_object_list(received, src=0, group=ranks.control)
        if received[0] is None:
            return
        runner.run(received[0])


def _send(batch: Batch | None, ranks: Ranks) -> None:
    dist.broadcast_object_list([batch], src=0, group=ranks.control)
