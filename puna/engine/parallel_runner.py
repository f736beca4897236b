"""A runner in several processes: the first schedules, the others run the same batches.

Only the first has an engine; it sends each batch before it runs its own share.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from puna.engine.batch import Batch, Runner
from puna.parallel.ranks import Ranks


class LeadingRunner:
    """The first process's runner. When it is let go of, or the program ends, so do the others."""

    def __init__(self, runner: Runner, ranks: Ranks) -> None:
        self._runner, self._ranks = runner, ranks
        self.config, self.num_pages = runner.config, runner.num_pages
        self.page_size = runner.page_size
        self._end = weakref.finalize(self, _send, None, ranks)

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """As the runner's own."""
        _send(batch, self._ranks)
        return self._runner.step(batch)

    def close(self) -> None:
        """Ends the other processes."""
        self._end()


def follow(runner: Runner, ranks: Ranks) -> None:
    """Runs what the first process sends, until that ends."""
    received: list[Any] = [None]
    while True:
        dist.broadcast_object_list(received, src=0, group=ranks.control)
        if received[0] is None:
            return
        runner.step(received[0])


def _send(batch: Batch | None, ranks: Ranks) -> None:
    dist.broadcast_object_list([batch], src=0, group=ranks.control)
