"""Keys and values of the tokens so far, as the `attend` of one sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from puna.attention import sdpa
from puna.config import ModelConfig


class KVCache:
    """Attention over everything this sequence has seen; call `advance` after each forward pass."""

    def __init__(
        self, config: ModelConfig, *, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_layers, 1, capacity, config.num_kv_heads, config.head_dim)
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        num_new = q_BTHD.shape[1]
        end = self.length + num_new
        keys, values = self._keys[layer], self._values[layer]
        keys[:, self.length : end] = k_BTKD
        values[:, self.length : end] = v_BTKD
        # Row t of the new tokens sees all old ones and the new ones up to itself.
        ones = torch.ones(num_new, end, dtype=torch.bool, device=q_BTHD.device)
        mask = ones.tril(diagonal=self.length)
        return sdpa(q_BTHD, keys[:, :end], values[:, :end], mask=mask)

    def advance(self, num_new: int) -> None:
        self.length += num_new
