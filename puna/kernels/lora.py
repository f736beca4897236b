"""Low-rank additions in tiles, as the native step reads them (`src/lora.h`)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from puna.kernels.tiles import Matrix, Tiles, as_matrix, pack

Floats = NDArray[np.float32]

# The order in `src/lora.h`, within a layer.
_ORDER = (
    *(f"attention.{name}" for name in ("wq", "wk", "wv", "wo")),
    *(f"feed_forward.{name}" for name in ("w1", "w3", "w2")),
)


class _LowRank(ctypes.Structure):
    _fields_ = (("a", Matrix), ("b", Matrix))


class LowRanks:
    """What an adapter adds to the matrices of `num_layers` layers and to the output.

    `pairs` maps canonical names to a (rank, in) and b (out, rank), any scale multiplied in;
    `orders`, those of matrices whose inputs come in another order, to which input is which.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        num_layers: int,
        pairs: Mapping[str, tuple[Floats, Floats]],
        orders: Mapping[str, NDArray[np.int32]],
    ) -> None:
        names = [f"layers.{i}.{part}.weight" for i in range(num_layers) for part in _ORDER]
        names.append("output.weight")
        self._array = (_LowRank * len(names))()
        self._kept: list[Tiles] = []
        self.rank = 0
        for low_rank, name in zip(self._array, names, strict=True):
            if name not in pairs:
                continue
            a, b = pairs[name]
            if name in orders:
                a = a[:, orders[name]]
            tiles = _packed(library, a), _packed(library, b)
            low_rank.a, low_rank.b = map(as_matrix, tiles)
            self._kept += tiles
            self.rank = max(self.rank, len(a))

    @property
    def address(self) -> int:
        return ctypes.addressof(self._array)


def _packed(library: ctypes.CDLL, matrix: Floats) -> Tiles:
    stored = np.ascontiguousarray(matrix, np.float32)
    return pack(library, "f32", stored.view(np.uint8), matrix.shape[1])


def addresses(adapters: Sequence[LowRanks | None]) -> ctypes.Array[ctypes.c_void_p]:
    """The pairs of each sequence's adapter, for a step; null where it has none."""
    found = [ctypes.c_void_p(adapter.address if adapter else None) for adapter in adapters]
    return (ctypes.c_void_p * len(found))(*found)
