"""The runner of the CPU: the native forward step over the weights as a checkpoint stores them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.engine.batch import Batch
from puna.engine.tile_cache import TileCache
from puna.engine.weights import load_weights
from puna.formats.checkpoint import Checkpoint
from puna.kernels import native
from puna.kernels.step import PAGE_SIZE, Forward


class NativeRunner:
    """Runs batches on the CPU. Block types are multiplied as they are, with activations of 8 bits.

    With `dtype` all matrices are converted to it first. A large model's packed weights are kept in
    `cache`. Raises ValueError where no native code was built.
    """

    page_size = PAGE_SIZE

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        num_pages: int,
        dtype: str | None = None,
        num_threads: int | None = None,
        cache: TileCache | None = None,
    ) -> None:
        library = native.library()
        if library is None:
            raise ValueError("native code was not built; install a C++ compiler and Puna again")
        self.config = checkpoint.config
        self.num_pages = num_pages
        weights = load_weights(library, checkpoint, dtype, cache)
        self._embeddings, self._embedding_type = weights.embeddings, weights.embedding_type
        self._forward = Forward(
            library,
            self.config,
            weights.tiles,
            weights.norms,
            num_pages=num_pages,
            num_threads=num_threads,
        )

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """Logits (L, V) of the rows `batch.outputs`."""
        for source, target in batch.copies:
            for pages in (self._forward.keys, self._forward.values):
                pages[:, target] = pages[:, source]
        x = self._embedding_type.dequantize(self._embeddings[batch.tokens])
        return self._forward(
            np.array(x, np.float32), batch.positions, batch.sequences, batch.tables, batch.outputs
        )
