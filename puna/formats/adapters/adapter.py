"""`Adapter`: what every LoRA file opens to ("LoRA", arXiv 2106.09685)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from puna.formats.checkpoint import LazyTensor, derived
from puna.formats.errors import FormatError
from puna.quantize.block_type import Bytes
from puna.quantize.storage import STORAGE


@dataclass(frozen=True, slots=True)
class Half:
    """One matrix of a pair, and its name in the file."""

    tensor: LazyTensor
    field: str

    def error(self, path: Path, problem: str) -> FormatError:
        path, offset = self.tensor.place or (path, 0)
        return FormatError(path, self.field, offset, problem)


@dataclass(frozen=True, slots=True)
class LowRank:
    """W becomes W + scale * b @ a: `a` (rank, in), `b` (out, rank); a 1-D W has one row.

    `error(problem)` is what is wrong with the pair, in the words of its file.
    """

    a: LazyTensor
    b: LazyTensor
    scale: float
    error: Callable[[str], FormatError]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as a file has it, its matrices read when asked for.

    `parts` maps canonical names of what it changes to the change; the rows of a `b` for `wq` or
    `wk` hold their rotary pairs interleaved if `interleaved`, else as two halves.
    """

    format: str
    path: Path
    parts: Mapping[str, LowRank]
    interleaved: bool = False
    notes: tuple[str, ...] = ()

    def scaled(self, factor: float) -> Adapter:
        """The adapter that changes so many times as much."""
        if not math.isfinite(factor):
            raise ValueError(
                f"an adapter cannot be added {factor} times; give a number such as 0.5"
            )
        parts = {name: replace(p, scale=factor * p.scale) for name, p in self.parts.items()}
        return replace(self, parts=parts)


def paired(
    path: Path,
    halves: Mapping[tuple[str, str], Half],
    scale: Callable[[str, int], float],
) -> dict[str, LowRank]:
    """Joins the halves {(name, "a" or "b"): ...}; `scale(name, rank)` is that of one pair.

    Raises FormatError where a half is missing, the two do not fit, or there is none.
    """
    if not halves:
        raise FormatError(path, "adapter", 0, "holds no tensors")
    parts = {}
    for (name, side), half in halves.items():
        error = functools.partial(half.error, path)
        if (name, "b" if side == "a" else "a") not in halves:
            raise error("is there without its other half")
        if side == "b":
            continue
        other = halves[name, "b"]
        a, b = half.tensor, other.tensor
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise error(f"{a.shape} and {other.field} {b.shape} have no rank in common")
        factor = scale(name, a.shape[0])
        if not math.isfinite(factor):
            raise error(f"has the scale {factor}")
        parts[name] = LowRank(a, b, factor, error)
    return parts


def transposed(tensor: LazyTensor) -> LazyTensor:
    """The matrix with rows and columns exchanged; blocks of integers become f32."""
    if len(tensor.shape) != 2:
        return tensor  # `paired` says what is wrong with it
    if STORAGE[tensor.dtype].block_size > 1:
        tensor = tensor.converted("f32")
    rows, columns = tensor.shape

    def read() -> Bytes:
        numbers = tensor.read().reshape(rows, columns, -1)
        return np.ascontiguousarray(numbers.swapaxes(0, 1)).reshape(columns, -1)

    origin = derived("transposed", tensor.origin)
    return LazyTensor((columns, rows), tensor.dtype, read, place=tensor.place, origin=origin)
