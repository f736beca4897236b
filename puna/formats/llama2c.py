"""llama2.c's `.bin` checkpoints, versions 0, 1 (both f32) and 2 (int8 in groups), read only.

https://github.com/karpathy/llama2.c, export.py. Everything after the header is numbers whose
places follow from it, so the header is checked, and the size it asks for, before anything is read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puna.config import ModelConfig
from puna.formats import rotary
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.files import map_file
from puna.formats.vocabularies import load_vocabulary
from puna.quantize.storage import Bytes
from puna.tokenizer import Vocabulary

NAME = "llama2c"

MAGIC = struct.pack("<I", 0x616B3432)
_HEADER_BYTES = 256  # of versions 1 and 2
_MAX_NUMBER = 1 << 24
_MAX_LAYERS = 1024

# What stands in a file, in order; {} is each layer in turn. The rotary tables are skipped.
_NORMS = ("layers.{}.attention_norm", "layers.{}.ffn_norm", "norm")
_MATRICES = (
    "tok_embeddings",
    "layers.{}.attention.wq", "layers.{}.attention.wk", "layers.{}.attention.wv",
    "layers.{}.attention.wo",
    "layers.{}.feed_forward.w1", "layers.{}.feed_forward.w2", "layers.{}.feed_forward.w3",
    "output",
)  # fmt: skip
_ROTARY_TABLES = "rotary tables"
_ORDERS: dict[int, tuple[str, ...]] = {
    0: (
        "tok_embeddings", "layers.{}.attention_norm", *_MATRICES[1:5], "layers.{}.ffn_norm",
        *_MATRICES[5:8], "norm", _ROTARY_TABLES, "output",
    ),
    1: (*_NORMS, *_MATRICES),
    2: (*_NORMS, *_MATRICES),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Header:
    """`group_size` is how many int8 values share a scale; 0 where the file holds floats."""

    version: int
    num_bytes: int
    config: ModelConfig
    group_size: int = 0


def detect(path: Path) -> bool:
    """By the magic, or, as version 0 has none, by seven numbers that make a Llama."""
    if path.suffix != ".bin" or not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(_HEADER_BYTES)
    if start.startswith(MAGIC):
        return True
    try:
        return _parse_header(start).version == 0
    except ValueError:
        return False


def read(path: Path) -> Checkpoint:
    """Opens a file; ValueError unless it is exactly as long as its header says."""
    data = map_file(path)
    try:
        header = _parse_header(data[:_HEADER_BYTES].tobytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tensors: dict[str, LazyTensor] = {}
    at = header.num_bytes
    for name, shape in _layout(header):
        begin, at = at, at + _num_bytes(shape, header.group_size)
        if name != _ROTARY_TABLES:
            tensors[name] = _lazy(data, begin, shape, header.group_size)
    if at != len(data):
        state = "truncated" if at > len(data) else "too long"
        raise ValueError(f"{path} is {state}: {len(data)} bytes, its header asks for {at}")
    notes = ["norm epsilon 1e-05 and rotary base 10000 assumed: llama2.c files do not say"]
    if header.group_size:
        notes.append(f"int8 weights in groups of {header.group_size} are read as f32")
    return Checkpoint(
        format=NAME,
        path=path,
        config=header.config,
        tensors=rotary.half_split(tensors, header.config),
        load_vocabulary=lambda: _load_vocabulary(path.parent, header.config.vocab_size),
        notes=tuple(notes),
    )


def _parse_header(start: bytes) -> _Header:
    """The header at the start of a file; ValueError where its numbers make no Llama."""
    if not start.startswith(MAGIC):
        if len(start) < 28:
            raise ValueError("truncated: llama2.c's header has 28 bytes")
        numbers = struct.unpack_from("<7i", start)
        # Version 0 says with the vocabulary's sign whether an output matrix of its own follows.
        tied = numbers[5] > 0
        return _Header(0, 28, _config((*numbers[:5], abs(numbers[5]), numbers[6]), tied=tied))
    if len(start) < _HEADER_BYTES:
        raise ValueError(f"truncated: llama2.c's header has {_HEADER_BYTES} bytes")
    version, *numbers_1, tied_byte, group_size = struct.unpack_from("<i7iBi", start, 4)
    if version not in (1, 2):
        raise ValueError(f"llama2.c version {version}; known are 0, 1 and 2")
    if tied_byte not in (0, 1):
        raise ValueError(f"damaged llama2.c header: shared classifier is {tied_byte}")
    config = _config(tuple(numbers_1), tied=bool(tied_byte))
    if version == 1:
        return _Header(1, _HEADER_BYTES, config)
    if not 0 < group_size <= _MAX_NUMBER:
        raise ValueError(f"damaged llama2.c header: groups of {group_size}")
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 2 and math.prod(shape) % group_size:
            raise ValueError(f"{name} does not divide into groups of {group_size}")
    return _Header(2, _HEADER_BYTES, config, group_size)


def _config(numbers: tuple[int, ...], *, tied: bool) -> ModelConfig:
    dim, ffn_dim, num_layers, num_heads, num_kv_heads, vocab_size, context_length = numbers
    if not all(0 < number <= _MAX_NUMBER for number in numbers) or num_layers > _MAX_LAYERS:
        raise ValueError(f"damaged llama2.c header: {', '.join(map(str, numbers))}")
    return ModelConfig(
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        context_length=context_length,
        tied=tied,
    )


def _layout(header: _Header) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(canonical name, shape) of all that follows the header, in the file's order."""
    config = header.config
    shapes = config.tensor_shapes()
    for name in _ORDERS[header.version]:
        if name == _ROTARY_TABLES:  # cosines and sines
            yield name, (2 * config.context_length * (config.head_dim // 2),)
        elif name != "output" or not config.tied:
            for layer in range(config.num_layers if "{}" in name else 1):
                full = f"{name.format(layer)}.weight"
                yield full, shapes[full]


def _num_bytes(shape: tuple[int, ...], group_size: int) -> int:
    count = math.prod(shape)
    if group_size and len(shape) == 2:
        return count + 4 * (count // group_size)
    return 4 * count


def _lazy(data: Bytes, begin: int, shape: tuple[int, ...], group_size: int) -> LazyTensor:
    count = math.prod(shape)
    stored = (*shape[:-1], 4 * shape[-1])
    if not group_size or len(shape) == 1:
        return LazyTensor(shape, "f32", lambda: data[begin : begin + 4 * count].reshape(stored))

    def dequantize() -> Bytes:
        """The int8 values of the flattened matrix, then one f32 scale per group of them."""
        scales_at = begin + count
        end = scales_at + 4 * (count // group_size)
        groups = data[begin:scales_at].view(np.int8).reshape(-1, group_size)
        scales = data[scales_at:end].view(np.float32)
        return (groups * scales[:, None]).reshape(shape).view(np.uint8)

    return LazyTensor(shape, "f32", dequantize)


def _load_vocabulary(folder: Path, vocab_size: int) -> Vocabulary | None:
    for name in (f"tok{vocab_size}.bin", "tokenizer.bin", "tokenizer.model"):
        if (folder / name).is_file():
            return load_vocabulary(folder / name)
    return None
