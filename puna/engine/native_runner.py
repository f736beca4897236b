"""The runner of the CPU: the native forward step over the weights as a checkpoint stores them."""

from __future__ import annotations

import numpy as np

from puna.engine.batch import Batch, Output
from puna.formats.checkpoint import Checkpoint
from puna.kernels import native
from puna.kernels.step import PAGE_SIZE, Forward
from puna.kernels.tiles import pack
from puna.quantize.storage import STORAGE


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
        tiles, norms = {}, {}
        for name, tensor in checkpoint.tensors.items():
            if len(tensor.shape) == 1:
                norms[name] = np.ascontiguousarray(tensor.read_float32())
                continue
            if dtype is not None:
                tensor = tensor.converted(dtype)
            stored = tensor.read()
            if name == "tok_embeddings.weight":
                embeddings = (stored, tensor.dtype, STORAGE[tensor.dtype].block_bytes)
                if not self.config.tied:
                    continue
                name = "output.weight"
            tiles[name] = pack(library, tensor.dtype, stored, tensor.shape[1])
        self._forward = Forward(
            library,
            self.config,
            tiles,
            norms,
            *embeddings,
            num_pages=num_pages,
            num_threads=num_threads,
        )

    def step(self, batch: Batch) -> Output:
        """Runs all rows; tokens and logits of `batch.outputs`."""
        for source, target in batch.copies:
            for pages in (self._forward.keys, self._forward.values):
                pages[:, target] = pages[:, source]
        return Output(
            *self._forward(
                batch.tokens,
                batch.positions,
                batch.sequences,
                batch.tables,
                batch.outputs,
                batch.draws or (None,) * len(batch.outputs),
            )
        )
