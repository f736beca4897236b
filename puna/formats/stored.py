"""`Stored`: a tensor as its container holds it, of any type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from puna.formats.checkpoint import LazyTensor
from puna.formats.errors import FormatError
from puna.quantize.block_type import Bytes
from puna.quantize.storage import STORAGE

FLOAT_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # container's name -> ours


@dataclass(frozen=True, slots=True)
class Stored:
    """`dtype` is safetensors' name of the type (F16, I32); `place` the file and the byte in it that
    describe the tensor; `read()` gives its bytes, flat, in memory of their own; `origin` as in
    `LazyTensor`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: tuple[Path, int]
    read: Callable[[], Bytes]
    origin: tuple[str, ...] | None = None

    def error(self, problem: str) -> FormatError:
        path, offset = self.place
        return FormatError(path, self.name, offset, problem)

    def lazy(self) -> LazyTensor:
        """The same as a tensor of floats; FormatError for other types."""
        if self.dtype not in FLOAT_TYPES:
            raise self.error(f"it is {self.dtype}; known are {', '.join(FLOAT_TYPES)}")
        kind = STORAGE[FLOAT_TYPES[self.dtype]]
        stored = kind.stored_shape(self.shape)
        return LazyTensor(
            self.shape,
            kind.name,
            lambda: self.read().reshape(stored),
            place=self.place,
            origin=self.origin,
        )
