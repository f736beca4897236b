"""The runner of any device: the network itself; the native step must equal it on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from puna.attention import sdpa
from puna.engine.batch import Batch, Output
from puna.engine.draws import answered
from puna.engine.torch_adapters import TorchAdapters
from puna.formats.adapters import Pair
from puna.formats.checkpoint import LazyTensor
from puna.formats.network import read_tensor
from puna.heads import next_token_logits
from puna.model import Llama


class TorchRunner:
    """Runs batches with a network, whose weights may go on being trained between steps."""

    page_size = 16

    def __init__(self, model: Llama, *, num_pages: int) -> None:
        self.model, self.config, self.num_pages = model, model.config, num_pages
        weight = model.norm.weight
        shape = (self.config.num_layers, num_pages, self.page_size)
        heads = (self.config.num_kv_heads, self.config.head_dim)
        self._keys = torch.zeros(*shape, *heads, device=weight.device, dtype=weight.dtype)
        self._values = torch.zeros_like(self._keys)
        self._adapters = TorchAdapters(model)

    @torch.inference_mode()
    def step(self, batch: Batch) -> Output:
        """Runs all rows; tokens and logits of `batch.outputs`."""
        for source, target in batch.copies:
            for pages in (self._keys, self._values):
                pages[:, target] = pages[:, source]
        device = self._keys.device
        tokens, positions, outputs = (
            torch.from_numpy(array.astype(np.int64)).to(device)
            for array in (batch.tokens, batch.positions, batch.outputs)
        )
        attend = _PagedAttention(self._keys, self._values, batch)
        with self._adapters.applied(batch):
            hidden = self.model(tokens[None], positions[None], attend)
            logits = next_token_logits(self.model, hidden[0, outputs]).float().cpu()
        return answered(batch, logits.numpy())

    def load_adapter(self, slot: int, pairs: Mapping[str, Pair]) -> None:
        """See `Runner`."""
        self._adapters.load(slot, pairs)

    def unload_adapter(self, slot: int) -> None:
        """See `Runner`."""
        self._adapters.unload(slot)

    @torch.no_grad()
    def update(self, weights: Mapping[str, LazyTensor]) -> None:
        """See `Runner`. ValueError, before any is changed, for layers that were quantized."""
        parameters = dict(self.model.named_parameters())
        if missing := weights.keys() - parameters.keys():
            raise ValueError(f"{min(missing)} was quantized and cannot be updated")
        for name, tensor in weights.items():
            parameters[name].copy_(read_tensor(tensor))


class _PagedAttention:
    """`attend` over the pages of a batch's sequences, one after another."""

    def __init__(self, keys: Tensor, values: Tensor, batch: Batch) -> None:
        self._keys, self._values = keys, values
        page_size = keys.shape[2]
        positions = torch.from_numpy(batch.positions.astype(np.int64)).to(keys.device)
        tables = torch.from_numpy(batch.tables.astype(np.int64)).to(keys.device)
        owners = torch.from_numpy(batch.sequences.astype(np.int64)).to(keys.device)
        self._pages = tables[owners, positions // page_size]
        self._slots = positions % page_size
        self._runs = []
        for sequence in np.unique(batch.sequences):
            rows = torch.from_numpy(np.flatnonzero(batch.sequences == sequence)).to(keys.device)
            length = int(positions[rows].max()) + 1
            pages = tables[int(sequence), : -(-length // page_size)]
            seen = torch.arange(length, device=keys.device) <= positions[rows, None]
            self._runs.append((rows, pages, length, seen))

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        keys, values = self._keys[layer], self._values[layer]
        keys[self._pages, self._slots] = k_BTKD[0]
        values[self._pages, self._slots] = v_BTKD[0]
        out = torch.empty_like(q_BTHD)
        for rows, pages, length, seen in self._runs:
            k, v = (part[pages].flatten(0, 1)[None, :length] for part in (keys, values))
            out[:, rows] = sdpa(q_BTHD[:, rows], k, v, mask=seen)
        return out
