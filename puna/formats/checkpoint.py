"""`Checkpoint`: what every file format opens to. Nothing here reads a weight before it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from puna.config import HEADS, ModelConfig
from puna.formats.errors import FormatError
from puna.quantize.block_type import Bytes, Floats
from puna.quantize.grouped import Grouped
from puna.quantize.storage import STORAGE, convert
from puna.tokenizer import Tokenizer, Vocabulary

MAX_VOCAB_PADDING = 256  # rows that some trainers add to the embedding to round its size up


@dataclass(frozen=True, slots=True)
class Packed:
    """The integers, of so many bits, that a tensor's file holds: `label` says how
    (`gptq-4bit-128g`).
    """

    label: str
    bits: int
    num_bytes: int
    read: Callable[[], Grouped]


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read when asked for.

    `shape` is the logical shape, `dtype` a name of `quantize.storage.STORAGE`; `read()` gives the
    stored rows as a uint8 array of shape (*shape[:-1], row bytes), in the canonical layout and in
    memory of its own. Where the file holds groups of integers, `packed` reads them, and `read()`
    what they stand for. `place` is the file, and the byte in it that describes the tensor;
    `origin` what all that is read is a function of (besides this package), None if not known.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Bytes]
    packed: Packed | None = None
    place: tuple[Path, int] | None = None
    origin: tuple[str, ...] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of what `read()` gives."""
        return STORAGE[self.dtype].num_bytes(self.shape)

    def read_float32(self) -> Floats:
        return STORAGE[self.dtype].dequantize(np.ascontiguousarray(self.read()))

    def converted(self, dtype: str, importance: Floats | None = None) -> LazyTensor:
        """The same tensor, re-stored as `dtype` when read; `importance` as in `StorageType`."""
        if dtype == self.dtype and self.packed is None:
            return self
        return replace(
            self,
            dtype=dtype,
            read=lambda: convert(self.read(), self.dtype, dtype, importance),
            packed=None,
            origin=derived(f"as {dtype}", self.origin) if importance is None else None,
        )

    def watched(self, callback: Callable[[str], None], name: str) -> LazyTensor:
        """The same tensor, calling `callback(name)` after each read (progress bars)."""

        def read() -> Bytes:
            raw = self.read()
            callback(name)
            return raw

        packed = self.packed
        if packed is None:
            return replace(self, read=read)

        def read_packed() -> Grouped:
            grouped = packed.read()
            callback(name)
            return grouped

        return replace(self, read=read, packed=replace(packed, read=read_packed))

    def reordered(self, reorder: Callable[[Bytes], Bytes], how: str) -> LazyTensor:
        """The same tensor with its rows moved by `reorder` when read; `how` says what that does."""
        origin = derived(how, self.origin)
        return replace(self, read=lambda: reorder(self.read()), packed=None, origin=origin)


def derived(how: str, *origins: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The origin of what `how` makes of others; None if one of them is not known."""
    known = [origin for origin in origins if origin is not None]
    if len(known) < len(origins):
        return None
    return (how, *(part for origin in known for part in origin))


@dataclass(frozen=True)
class Checkpoint:
    """A model as a file has it.

    `tensors` maps canonical (Meta's) names to tensors whose rotary pairs are half-split; `notes`
    says what the file left out and was assumed. `chat_template` is the file's own, a Jinja text.
    """

    format: str
    path: Path
    config: ModelConfig
    tensors: Mapping[str, LazyTensor]
    load_vocabulary: Callable[[], Vocabulary | None] = lambda: None
    chat_template: str | None = None
    name: str = ""
    license: str = ""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_tensors(self.config, self.tensors, self.path)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        vocabulary = self.load_vocabulary()
        if vocabulary is not None:
            check_vocabulary(self.config, vocabulary, self.path)
        return vocabulary

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; ValueError where it came without one."""
        if self.vocabulary is None:
            raise ValueError(
                f"{self.path} has no tokenizer beside it; put tokenizer.model there or give "
                "--tokenizer"
            )
        try:
            return Tokenizer(self.vocabulary)
        except ValueError as error:
            raise FormatError(self.path, "tokenizer", 0, str(error)) from None

    @property
    def heads(self) -> tuple[str, ...]:
        """The scalar heads that it has (`config.HEADS`)."""
        return tuple(head for head in HEADS if f"{head}.weight" in self.tensors)

    def check_speaks(self) -> None:
        """ValueError for a reward model: it was trained without a head for the next token."""
        if "score" in self.heads:
            raise ValueError(
                f"{self.path} is a reward model: it scores answers and gives none; take the model "
                "that it began from"
            )

    def without_heads(self) -> Checkpoint:
        """The same without its scalar heads."""
        shapes = self.config.tensor_shapes()
        return replace(self, tensors={n: t for n, t in self.tensors.items() if n in shapes})

    def with_vocabulary(self, vocabulary: Vocabulary) -> Checkpoint:
        return replace(self, load_vocabulary=lambda: vocabulary)

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(self.dtype_bytes().values())

    @property
    def main_dtype(self) -> str:
        """The storage type of most bytes that reading all tensors gives."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.num_bytes
        return max(sizes, key=sizes.__getitem__)

    def dtype_bytes(self) -> dict[str, int]:
        """Storage type -> bytes of weights stored so, the largest first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            stored = tensor.packed
            label, size = (
                (stored.label, stored.num_bytes) if stored else (tensor.dtype, tensor.num_bytes)
            )
            sizes[label] = sizes.get(label, 0) + size
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def check_tensors(config: ModelConfig, tensors: Mapping[str, LazyTensor], path: Path) -> None:
    """FormatError unless `tensors` are exactly those of a Llama of this shape, and heads of it."""
    if config.num_layers > len(tensors):  # before anything is made for each layer
        raise FormatError(
            path,
            "tensors",
            0,
            f"there are {len(tensors)}; the config says {config.num_layers} layers",
        )
    heads = config.head_shapes().items()
    expected = config.tensor_shapes() | {name: shape for name, shape in heads if name in tensors}
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise FormatError(path, missing[0], 0, f"the file lacks {_some(missing)}")
    unknown = [name for name in tensors if name not in expected]
    if unknown:
        where, at = tensors[unknown[0]].place or (path, 0)
        problem = f"the file holds {_some(unknown)}, which a Llama of this shape has not"
        raise FormatError(where, unknown[0], at, problem)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            where, at = tensors[name].place or (path, 0)
            problem = f"has shape {tensors[name].shape}, the config says {shape}"
            raise FormatError(where, name, at, problem)


def check_vocabulary(config: ModelConfig, vocabulary: Vocabulary, path: Path) -> None:
    """FormatError unless each piece has a row in the embedding (some padding rows may follow)."""
    padding = config.vocab_size - len(vocabulary)
    if not 0 <= padding < MAX_VOCAB_PADDING:
        raise FormatError(
            path,
            "tokenizer",
            0,
            f"it has {len(vocabulary)} pieces, the weights have {config.vocab_size}; they do not "
            "belong together",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
