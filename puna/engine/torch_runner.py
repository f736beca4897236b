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
from puna.quantize.kv_cache import dequantize_kv, quantize_kv

_KV_TYPES = {"f32": torch.float32, "f16": torch.float16, "int8": torch.int8}


class TorchRunner:
    """Runs batches with a network, whose weights may go on being trained between steps.

    Keys and values are kept as `kv_dtype`: f32, f16, int8, or, with "auto", as the weights are.
    """

    page_size = 16

    def __init__(self, model: Llama, *, num_pages: int, kv_dtype: str = "auto") -> None:
        self.model, self.config, self.num_pages = model, model.config, num_pages
        weight = model.norm.weight
        dtype = weight.dtype if kv_dtype == "auto" else _KV_TYPES[kv_dtype]
        shape = (self.config.num_layers, num_pages, self.page_size)
        heads = (self.config.num_kv_heads, self.config.head_dim)
        self._keys, self._values = (
            _Pages(torch.zeros(*shape, *heads, device=weight.device, dtype=dtype)) for _ in range(2)
        )
        self.token_bytes = 2 * self._keys.num_bytes // (num_pages * self.page_size)
        self._adapters = TorchAdapters(model)

    @torch.inference_mode()
    def step(self, batch: Batch) -> Output:
        """Runs all rows; tokens and logits of `batch.outputs`, states of `batch.hidden`."""
        for source, target in batch.copies:
            for pages in (self._keys, self._values):
                pages.copy(source, target)
        device = self.model.norm.weight.device
        tokens, positions, outputs, wanted = (
            torch.from_numpy(array.astype(np.int64)).to(device)
            for array in (batch.tokens, batch.positions, batch.outputs, batch.hidden)
        )
        attend = _PagedAttention(self._keys, self._values, batch)
        with self._adapters.applied(batch):
            hidden = self.model(tokens[None], positions[None], attend)[0]
            logits = next_token_logits(self.model, hidden[outputs]).float().cpu()
        return answered(batch, logits.numpy(), hidden[wanted].float().cpu().numpy())

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


class _Pages:
    """Keys or values (layers, pages, page size, KV heads, D); int8 has a scale for each head."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self._parts = [numbers]
        if numbers.dtype == torch.int8:
            self._parts.append(numbers.new_zeros(numbers.shape[:-1], dtype=torch.float16))

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    def copy(self, source: int, target: int) -> None:
        for part in self._parts:
            part[:, target] = part[:, source]

    def keep(self, layer: int, pages: Tensor, slots: Tensor, x_TKD: Tensor) -> None:
        whole = quantize_kv(x_TKD) if len(self._parts) > 1 else (x_TKD.to(self.numbers.dtype),)
        for part, numbers in zip(self._parts, whole, strict=True):
            part[layer, pages, slots] = numbers

    def read(self, layer: int, pages: Tensor, dtype: torch.dtype) -> Tensor:
        """All positions of some pages, one after another (T, K, D)."""
        numbers, *scales = (part[layer, pages].flatten(0, 1) for part in self._parts)
        return dequantize_kv(numbers, scales[0], dtype) if scales else numbers.to(dtype)


class _PagedAttention:
    """`attend` over the pages of a batch's sequences, one after another."""

    def __init__(self, keys: _Pages, values: _Pages, batch: Batch) -> None:
        self._keys, self._values = keys, values
        device, page_size = keys.numbers.device, keys.numbers.shape[2]
        positions = torch.from_numpy(batch.positions.astype(np.int64)).to(device)
        tables = torch.from_numpy(batch.tables.astype(np.int64)).to(device)
        owners = torch.from_numpy(batch.sequences.astype(np.int64)).to(device)
        self._pages = tables[owners, positions // page_size]
        self._slots = positions % page_size
        self._runs = []
        for sequence in np.unique(batch.sequences):
            rows = torch.from_numpy(np.flatnonzero(batch.sequences == sequence)).to(device)
            length = int(positions[rows].max()) + 1
            pages = tables[int(sequence), : -(-length // page_size)]
            seen = torch.arange(length, device=device) <= positions[rows, None]
            self._runs.append((rows, pages, length, seen))

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        self._keys.keep(layer, self._pages, self._slots, k_BTKD[0])
        self._values.keep(layer, self._pages, self._slots, v_BTKD[0])
        out = torch.empty_like(q_BTHD)
        for rows, pages, length, seen in self._runs:
            k, v = (
                kept.read(layer, pages, q_BTHD.dtype)[None, :length]
                for kept in (self._keys, self._values)
            )
            out[:, rows] = sdpa(q_BTHD[:, rows], k, v, mask=seen)
        return out
