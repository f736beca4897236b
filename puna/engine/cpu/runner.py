"""The runner of the CPU: the native forward step over the weights as a checkpoint stores them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from puna.engine.batch import Batch, Output
from puna.engine.cpu.tile_cache import TileCache
from puna.engine.cpu.weights import EMBEDDINGS, HEAD, embeddings_of, load_weights, tiles_of
from puna.engine.memory import chosen_kv_dtype, kv_bytes
from puna.formats.adapters import Pair
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.kernels import native
from puna.kernels.kv_types import KV_TYPES, PAGE_SIZE
from puna.kernels.lora import LowRanks
from puna.kernels.step import Forward


class NativeRunner:
    """Runs batches on the CPU. Block types are multiplied as they are, with activations of 8 bits.

    With `dtype` all matrices are converted to it first. Keys and values are kept as `kv_dtype`:
    f32, f16, int8 or auto (`chosen_kv_dtype`). A large model's packed weights are kept in `cache`.
    Raises ValueError where no native code was built.
    """

    page_size = PAGE_SIZE

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        num_pages: int,
        dtype: str | None = None,
        kv_dtype: str = "f32",
        num_threads: int | None = None,
        cache: TileCache | None = None,
    ) -> None:
        library = native.library()
        if library is None:
            raise ValueError("native code was not built; install a C++ compiler and Puna again")
        self.config = checkpoint.config
        self.num_pages = num_pages
        self._library, self._dtype = library, dtype
        self._adapters: dict[int, LowRanks] = {}
        self._embedding_pairs: dict[int, Pair] = {}
        kv_dtype = chosen_kv_dtype(kv_dtype, checkpoint, dtype)
        self.token_bytes = kv_bytes(self.config, PAGE_SIZE, kv_dtype) // PAGE_SIZE
        weights = load_weights(library, checkpoint, dtype, cache)
        self._forward = Forward(
            library,
            self.config,
            weights.tiles,
            weights.norms,
            weights.embeddings,
            num_pages=num_pages,
            kv_type=KV_TYPES[kv_dtype],
            num_threads=num_threads,
            orders=weights.orders,
        )

    def step(self, batch: Batch) -> Output:
        """Runs all rows; tokens and logits of `batch.outputs`, states of `batch.hidden`."""
        for source, target in batch.copies:
            for pages in (self._forward.keys, self._forward.values):
                pages[:, target] = pages[:, source]
        adapters: list[LowRanks | None] = []
        added = None
        if batch.adapters is not None:
            adapters = [self._adapters[n] if n >= 0 else None for n in batch.adapters.tolist()]
            added = self._embedding_changes(batch)
        return Output(
            *self._forward(
                batch.tokens,
                batch.positions,
                batch.sequences,
                batch.tables,
                batch.outputs,
                batch.draws or (None,) * len(batch.outputs),
                batch.hidden,
                adapters,
                added,
            )
        )

    def load_adapter(self, slot: int, pairs: Mapping[str, Pair]) -> None:
        """See `Runner`."""
        self._adapters[slot] = self._forward.low_ranks(pairs)
        if EMBEDDINGS in pairs:
            self._embedding_pairs[slot] = pairs[EMBEDDINGS]

    def unload_adapter(self, slot: int) -> None:
        """See `Runner`."""
        del self._adapters[slot]
        self._embedding_pairs.pop(slot, None)

    def update(self, weights: Mapping[str, LazyTensor]) -> None:
        """See `Runner`. Weights are held as they are given, or in the runner's `dtype`."""
        self._forward.check_update(weights)
        for name, tensor in weights.items():
            if name == EMBEDDINGS:
                self._forward.look_up(embeddings_of(tensor, self._dtype))
                if not self.config.tied:
                    continue
                name = HEAD
            self._forward.replace(name, tiles_of(self._library, tensor, self._dtype))

    def _embedding_changes(self, batch: Batch) -> NDArray[np.float32] | None:
        """What adapters add to the embeddings (R, D); term by term, whatever else is there."""
        assert batch.adapters is not None
        slots = batch.adapters[batch.sequences]
        if not np.isin(slots, list(self._embedding_pairs)).any():
            return None
        added = np.zeros((len(slots), self.config.dim), np.float32)
        for slot, (a, b) in self._embedding_pairs.items():
            rows = np.flatnonzero(slots == slot)
            factors = b[batch.tokens[rows]]
            for k, direction in enumerate(a):
                added[rows] += factors[:, k, None] * direction
        return added
