"""Whether an adapter is for a model, and its pairs as that one's weights have their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from puna.config import ModelConfig
from puna.formats import rotary
from puna.formats.adapters.adapter import Adapter, LowRank
from puna.quantize.block_type import Floats

Pair = tuple[Floats, Floats]  # a (rank, in), b (out, rank); the scale is in b


def fitted(adapter: Adapter, config: ModelConfig, path: Path) -> dict[str, LowRank]:
    """The parts by canonical names, rows in the canonical order; reads no weight.

    Raises FormatError where they are not for the model of shape `config`, which lies at `path`.
    """
    shapes = config.tensor_shapes()
    parts = {}
    for name, part in adapter.parts.items():
        if name not in shapes:
            raise part.error(f"changes {name}, which {path} has not")
        if name == "tok_embeddings.weight" and config.tied:
            raise part.error(f"changes the embedding, which is also the output head of {path}")
        shape, rows = (part.b.shape[0], part.a.shape[1]), (1, *shapes[name])[-2:]
        if shape != rows:
            raise part.error(f"is for {name} of shape {shape}, in {path} it has {rows}")
        if adapter.interleaved:
            part = replace(part, b=rotary.half_split({name: part.b}, config)[name])
        parts[name] = part
    return parts


def read_pairs(adapter: Adapter, config: ModelConfig, path: Path) -> dict[str, Pair]:
    """The pairs as numbers, for an engine that adds them as it runs.

    Raises FormatError as `fitted`, for norms, which such an engine does not change, and for what
    is no finite number.
    """
    parts, shapes = fitted(adapter, config, path), config.tensor_shapes()
    for name, part in parts.items():
        if len(shapes[name]) == 1:
            raise part.error(f"changes {name}; an adapter of norms can only be merged into a model")
    return {name: _read(name, part) for name, part in parts.items()}


def added(several: Sequence[Mapping[str, Pair]]) -> dict[str, Pair]:
    """One adapter that does what all of these do together."""
    names = dict.fromkeys(name for pairs in several for name in pairs)
    joined = {}
    for name in names:
        parts = [pairs[name] for pairs in several if name in pairs]
        joined[name] = (
            np.concatenate([a for a, _ in parts]),
            np.concatenate([b for _, b in parts], axis=1),
        )
    return joined


def _read(name: str, part: LowRank) -> Pair:
    with np.errstate(over="ignore", invalid="ignore"):  # said below
        a, b = part.a.read_float32(), part.b.read_float32() * np.float32(part.scale)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise part.error(f"makes {name} no finite number")
    return a, b
