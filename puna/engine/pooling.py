"""One vector of a prompt's hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Pooling(Protocol):
    """Takes rows that come in chunks."""

    def add(self, begin: int, hidden_TD: NDArray[np.float32]) -> None:
        """The rows from position `begin` on; from 0 on, whatever there was is forgotten."""
        ...

    @property
    def vector(self) -> NDArray[np.float32]:
        """(D,). ValueError where it is not finite."""
        ...


class MeanPooling:
    """The mean of all rows.

    They are added one after another in float64, so that no bit depends on how they were cut.
    """

    def __init__(self, dim: int) -> None:
        self._total, self._count = np.zeros(dim), 0

    def add(self, begin: int, hidden_TD: NDArray[np.float32]) -> None:
        if begin == 0:
            self._total[:] = 0
        with np.errstate(invalid="ignore"):  # `vector` says it
            for row in hidden_TD:
                self._total += row
        self._count = begin + len(hidden_TD)

    @property
    def vector(self) -> NDArray[np.float32]:
        return _finite((self._total / self._count).astype(np.float32))


class LastPooling:
    """The last row: what a scalar head reads."""

    def __init__(self, dim: int) -> None:
        self._row = np.zeros(dim, np.float32)

    def add(self, begin: int, hidden_TD: NDArray[np.float32]) -> None:
        self._row[:] = hidden_TD[-1]

    @property
    def vector(self) -> NDArray[np.float32]:
        return _finite(self._row)


def _finite(vector_D: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(vector_D).all():
        raise ValueError("there is no embedding: the hidden states are not finite")
    return vector_D


# Name -> what makes one, of the width of the model.
POOLINGS: dict[str, Callable[[int], Pooling]] = {"mean": MeanPooling, "last": LastPooling}
