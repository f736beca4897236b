"""Rotary pairs: Meta and GGUF interleave them, Hugging Face and Puna keep two halves.

Only the rows of `wq` and `wk` differ, so the change is exact for every storage type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from puna.config import ModelConfig
from puna.formats.checkpoint import LazyTensor
from puna.quantize.block_type import Bytes


def to_half_split(rows: Bytes, num_heads: int) -> Bytes:
    """Rows of `num_heads` heads, pairs interleaved -> halves."""
    heads = rows.reshape(num_heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def to_interleaved(rows: Bytes, num_heads: int) -> Bytes:
    """The inverse of `to_half_split`."""
    heads = rows.reshape(num_heads, 2, -1, rows.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def half_split(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> dict[str, LazyTensor]:
    """Tensors of an interleaved format, in the canonical layout."""
    return _reordered(tensors, config, to_half_split)


def interleaved(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> dict[str, LazyTensor]:
    """Canonical tensors, in the layout of an interleaved format."""
    return _reordered(tensors, config, to_interleaved)


def _reordered(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, reorder: Callable[..., Bytes]
) -> dict[str, LazyTensor]:
    heads = {"wq": config.num_heads, "wk": config.num_kv_heads}
    out = {}
    for name, tensor in tensors.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part in heads:
            tensor = tensor.reordered(
                functools.partial(reorder, num_heads=heads[part]),
                f"{reorder.__name__} {heads[part]}",
            )
        out[name] = tensor
    return out
