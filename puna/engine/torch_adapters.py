"""Adapters on the network: what they add to its linear layers, while a batch runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from puna.engine.batch import Batch
from puna.formats.adapters import Pair
from puna.model import Llama

_Pair = tuple[Tensor, Tensor]  # a (rank, in), b (out, rank), float32


class TorchAdapters:
    """Pairs by the slot and the module's name; the definition of what the native step does.

    Hooks add them, so that the network's modules and names stay as they are, and training it goes
    on as if they were not there.
    """

    def __init__(self, model: Llama) -> None:
        self._model = model
        self._pairs: dict[int, dict[str, _Pair]] = {}

    def load(self, slot: int, pairs: Mapping[str, Pair]) -> None:
        device = self._model.norm.weight.device
        self._pairs[slot] = {
            name.removesuffix(".weight"): (
                torch.from_numpy(a).to(device),
                torch.from_numpy(b).to(device),
            )
            for name, (a, b) in pairs.items()
        }

    def unload(self, slot: int) -> None:
        del self._pairs[slot]

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[None]:
        """Inside, the modules give what the adapters of the batch's rows make of it."""
        if batch.adapters is None:
            yield
            return
        slots = batch.adapters[batch.sequences]
        device = self._model.norm.weight.device
        by_module: dict[str, list[tuple[Tensor, _Pair]]] = {}
        for slot in np.unique(slots[slots >= 0]).tolist():
            for name, pair in self._pairs[slot].items():
                # The head is given the rows alone whose logits are wanted.
                own = slots[batch.outputs] if name == "output" else slots
                rows = torch.from_numpy(np.flatnonzero(own == slot)).to(device)
                by_module.setdefault(name, []).append((rows, pair))
        with ExitStack() as hooks:
            for name, parts in by_module.items():
                module = self._model.get_submodule(name)
                hooks.enter_context(module.register_forward_hook(_Addition(parts)))
            yield


class _Addition:
    """A forward hook: b (a x) for some rows, in float32."""

    def __init__(self, parts: list[tuple[Tensor, _Pair]]) -> None:
        self._parts = parts

    def __call__(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Any:
        x, wide = inputs[0], output.shape[-1]
        out = output.reshape(-1, wide).clone()
        for rows, (a, b) in self._parts:
            if isinstance(module, nn.Embedding):
                more = b[x.reshape(-1)[rows]] @ a
            else:
                more = x.reshape(-1, x.shape[-1])[rows].float() @ a.T @ b.T
            out[rows] = (out[rows].float() + more).to(out.dtype)
        return out.view(output.shape)
