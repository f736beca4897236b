"""Which layers lie on the GPU where not all fit: numbers in, a plan out. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model on a GPU: of each layer, of what is in none (embedding, head, norms), of
    the keys and values of one token in one layer, and of what steps work with."""

    layers: tuple[int, ...]
    others: int
    kv_token: int
    work: int


def plan_layers(sizes: Sizes, num_tokens: int, free: int, path: Path) -> int:
    """How many layers, the first ones, have to lie on the CPU; keys and values lie with them.

    The last layers are kept on the GPU, with embedding and head: what moves is one hidden state
    each way. Raises ValueError with the numbers where not even one layer fits.
    """
    left = free - sizes.others - sizes.work
    kv = sizes.kv_token * num_tokens
    on_gpu = 0
    for layer in reversed(sizes.layers):
        left -= layer + kv
        if left < 0:
            break
        on_gpu += 1
    if on_gpu == 0:
        least = sizes.others + sizes.work + sizes.layers[-1] + kv
        raise ValueError(
            f"{path}: the GPU has {free / 1e9:.1f} GB free; a single layer beside embedding, head "
            f"and keys and values of {num_tokens} tokens takes {least / 1e9:.1f} GB. Use a smaller "
            "type, fewer tokens (kv_tokens), or the device cpu"
        )
    return len(sizes.layers) - on_gpu


def plan_tokens(sizes: Sizes, least: int, most: int, free: int) -> int:
    """For how many tokens to hold keys and values: what is left, between `least` and `most`."""
    weights = sum(sizes.layers) + sizes.others + sizes.work
    affordable = (free - weights) // (sizes.kv_token * len(sizes.layers))
    return max(least, min(most, affordable))


def cpu_bytes(sizes: Sizes, num_on_cpu: int, num_tokens: int) -> int:
    """Bytes that the first `num_on_cpu` layers take of the machine's own memory."""
    first: Sequence[int] = sizes.layers[:num_on_cpu]
    return sum(first) + num_on_cpu * sizes.kv_token * num_tokens
