"""Packed batches: the corpus cut into windows of the context length, in a seeded order.

The batch of a step is a function of the step alone, so a resumed run sees what it would have seen.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray


class PackedBatches:
    """Windows of `context_length` + 1 tokens (inputs and targets overlap by all but one).

    Each epoch is a new permutation of all windows. The last `num_held_out` windows are never
    trained on: they are what `held_out()` gives for evaluation. Raises ValueError where the corpus
    is too short for one batch.
    """

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        num_held_out: int = 0,
    ) -> None:
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        self.num_windows = (len(tokens) - 1) // context_length - num_held_out
        self.num_held_out = num_held_out
        if self.num_windows < batch_size:
            raise ValueError(
                f"{len(tokens)} tokens give {max(self.num_windows, 0)} windows of "
                f"{context_length} to train on; a batch needs {batch_size}"
            )

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> NDArray[np.int64]:
            return np.random.default_rng((seed, epoch)).permutation(self.num_windows)

        self._order = order

    def batch(self, step: int) -> NDArray[np.int64]:
        """The batch of `step` (0, 1, ...): ids (batch_size, context_length + 1)."""
        first = step * self.batch_size
        rows = []
        for number in range(first, first + self.batch_size):
            epoch, index = divmod(number, self.num_windows)
            rows.append(self._window(int(self._order(epoch)[index])))
        return np.stack(rows)

    def held_out(self) -> list[NDArray[np.int64]]:
        """The held-out windows, in batches of `batch_size` at most."""
        windows = [self._window(self.num_windows + i) for i in range(self.num_held_out)]
        return [
            np.stack(windows[i : i + self.batch_size])
            for i in range(0, len(windows), self.batch_size)
        ]

    def _window(self, index: int) -> NDArray[np.int64]:
        start = index * self.context_length
        return self.tokens[start : start + self.context_length + 1].astype(np.int64)
