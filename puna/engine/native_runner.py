"""The runner of the CPU: the native forward step over the weights as a checkpoint stores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from puna.engine.batch import Batch
from puna.formats.adapters import Pair
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.kernels import native
from puna.kernels.lora import LowRanks
from puna.kernels.step import PAGE_SIZE, Forward
from puna.kernels.tiles import Tiles, pack
from puna.quantize.storage import STORAGE

_EMBEDDINGS = "tok_embeddings.weight"


class NativeRunner:
    """Runs batches on the CPU. Block types are multiplied as they are, with activations of 8 bits.

    With `dtype` all matrices are converted to it first. Raises ValueError where no native code
    was built.
    """

    page_size = PAGE_SIZE

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        num_pages: int,
        dtype: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        library = native.library()
        if library is None:
            raise ValueError("native code was not built; install a C++ compiler and Puna again")
        self.config = checkpoint.config
        self.num_pages = num_pages
        self._library, self._dtype = library, dtype
        self._adapters: dict[int, LowRanks] = {}
        self._embedding_pairs: dict[int, Pair] = {}
        tiles: dict[str, Tiles] = {}
        norms: dict[str, NDArray[np.float32]] = {}
        for name, weight in self._packed(checkpoint.tensors):
            if isinstance(weight, Tiles):
                tiles[name] = weight
            else:
                norms[name] = weight
        self._forward = Forward(
            library, self.config, tiles, norms, num_pages=num_pages, num_threads=num_threads
        )

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """Logits (L, V) of the rows `batch.outputs`."""
        for source, target in batch.copies:
            for pages in (self._forward.keys, self._forward.values):
                pages[:, target] = pages[:, source]
        x = np.array(self._embedding_type.dequantize(self._embeddings[batch.tokens]), np.float32)
        adapters: list[LowRanks | None] = []
        if batch.adapters is not None:
            self._adapt_embeddings(x, batch)
            adapters = [self._adapters[n] if n >= 0 else None for n in batch.adapters.tolist()]
        return self._forward(
            x, batch.positions, batch.sequences, batch.tables, batch.outputs, adapters
        )

    def load_adapter(self, slot: int, pairs: Mapping[str, Pair]) -> None:
        """See `Runner`."""
        self._adapters[slot] = self._forward.low_ranks(pairs)
        if _EMBEDDINGS in pairs:
            self._embedding_pairs[slot] = pairs[_EMBEDDINGS]

    def unload_adapter(self, slot: int) -> None:
        """See `Runner`."""
        del self._adapters[slot]
        self._embedding_pairs.pop(slot, None)

    def update(self, weights: Mapping[str, LazyTensor]) -> None:
        """See `Runner`. Weights are held as they are given, or in the runner's `dtype`."""
        for name, weight in self._packed(weights):
            self._forward.replace(name, weight)

    def _packed(
        self, tensors: Mapping[str, LazyTensor]
    ) -> Iterator[tuple[str, Tiles | NDArray[np.float32]]]:
        """The tensors as the step reads them, one by one; embeddings are kept here, as stored."""
        for name, tensor in tensors.items():
            if len(tensor.shape) == 1:
                yield name, np.ascontiguousarray(tensor.read_float32())
                continue
            if self._dtype is not None:
                tensor = tensor.converted(self._dtype)
            stored = tensor.read()
            if name == _EMBEDDINGS:
                self._embeddings, self._embedding_type = stored, STORAGE[tensor.dtype]
                if not self.config.tied:
                    continue
                name = "output.weight"
            yield name, pack(self._library, tensor.dtype, stored, tensor.shape[1])

    def _adapt_embeddings(self, x: NDArray[np.float32], batch: Batch) -> None:
        """Adds what adapters change of the embeddings; term by term, whatever else is there."""
        assert batch.adapters is not None
        slots = batch.adapters[batch.sequences]
        for slot, (a, b) in self._embedding_pairs.items():
            rows = np.flatnonzero(slots == slot)
            factors = b[batch.tokens[rows]]
            for k, direction in enumerate(a):
                x[rows] += factors[:, k, None] * direction
