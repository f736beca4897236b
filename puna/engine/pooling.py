"""One vector of a prompt's hidden states."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class MeanPooling:
    """The mean of rows that come in chunks.

    They are added one after another in float64, so that no bit depends on how they were cut.
    """

    def __init__(self, dim: int) -> None:
        self._total, self._count = np.zeros(dim), 0

    def add(self, begin: int, hidden_TD: NDArray[np.float32]) -> None:
        """The rows from position `begin` on; from 0 on, whatever there was is forgotten."""
        if begin == 0:
            self._total[:] = 0
        with np.errstate(invalid="ignore"):  # `mean` says it
            for row in hidden_TD:
                self._total += row
        self._count = begin + len(hidden_TD)

    @property
    def mean(self) -> NDArray[np.float32]:
        """(D,). ValueError where it is not finite."""
        mean: NDArray[np.float32] = (self._total / self._count).astype(np.float32)
        if not np.isfinite(mean).all():
            raise ValueError("there is no embedding: the hidden states are not finite")
        return mean
