"""Adds a LoRA adapter to a checkpoint's weights, tensor by tensor, when they are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from puna.formats.adapters.adapter import Adapter, LowRank
from puna.formats.adapters.fit import fitted
from puna.formats.checkpoint import Checkpoint, LazyTensor, derived
from puna.quantize.block_type import Bytes, Floats
from puna.quantize.storage import STORAGE

_CHUNK = 1 << 20  # numbers in float32 at a time


def merged(checkpoint: Checkpoint, adapter: Adapter, scale: float = 1.0) -> Checkpoint:
    """The checkpoint with W + scale * (alpha / rank) * B @ A for each W that the adapter changes.

    Computed in float32 and stored in W's own type; integers of a GPTQ file become f32. Raises
    FormatError before any weight is read if the adapter is not for a model of this shape.
    """
    tensors = dict(checkpoint.tensors)
    rounded: Counter[str] = Counter()
    parts = fitted(adapter.scaled(scale), checkpoint.config, checkpoint.path)
    for name, part in parts.items():
        tensor = tensors[name]
        tensors[name] = _sum(adapter, name, tensor, part)
        if tensor.packed is not None:
            rounded[f"{tensor.packed.label} and become f32"] += 1
        elif STORAGE[tensor.dtype].block_size > 1:
            rounded[f"{tensor.dtype} and are rounded a second time"] += 1
    notes = [f"{adapter.path.name} is merged into {len(adapter.parts)} tensors"]
    if scale != 1:
        notes[0] += f", {scale:g} times"
    notes += [
        f"{count} of the merged tensors were {what}; merge into the original weights where you "
        "have them"
        for what, count in rounded.items()
    ]
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, *adapter.notes, *notes))


def _sum(adapter: Adapter, name: str, tensor: LazyTensor, part: LowRank) -> LazyTensor:
    def read() -> Bytes:
        kind = STORAGE[tensor.dtype]
        raw = tensor.read()
        rows = raw.reshape(-1, raw.shape[-1])
        a = part.a.read_float32()
        b = part.b.read_float32()
        out = np.empty_like(rows)
        step = max(1, _CHUNK // tensor.shape[-1])
        for begin in range(0, len(rows), step):
            some = slice(begin, begin + step)
            with np.errstate(over="ignore", invalid="ignore"):  # said below
                x: Floats = b[some] @ a
                x *= part.scale
                x += kind.dequantize(np.ascontiguousarray(rows[some]))
            if not np.isfinite(x).all():
                raise part.error(f"makes {name} no finite number")
            try:
                out[some] = kind.quantize(x, None)
            except ValueError as error:
                raise ValueError(f"{name}, with {adapter.path} merged: {error}") from None
        return out.reshape(raw.shape)

    origin = derived(f"merged {part.scale!r}", tensor.origin, part.a.origin, part.b.origin)
    return LazyTensor(tensor.shape, tensor.dtype, read, place=tensor.place, origin=origin)
