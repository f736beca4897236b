"""llama2.c's `.bin` checkpoints: versions 0, 1 (both f32) and 2 (int8 in groups); 0 is written.

https://github.com/karpathy/llama2.c, export.py. Everything after the header is numbers whose
places follow from it, so the header is checked, and the size it asks for, before anything is read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from puna.config import ConfigError, ModelConfig
from puna.formats import rotary
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import FormatError
from puna.formats.files import DataFile, atomic_file
from puna.formats.vocabularies import load_vocabulary
from puna.quantize.block_type import Bytes, Floats
from puna.tokenizer import PieceType, Vocabulary
from puna.tokenizer.llama2c import write_bin
from puna.tokenizer.vocabulary import padded

NAME = "llama2c"

MAGIC = struct.pack("<I", 0x616B3432)
_HEADER_BYTES = 256  # of versions 1 and 2
_MAX_NUMBER = 1 << 24
_MAX_LAYERS = 1024
_TOKENIZER = "tokenizer.bin"

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


# The header's numbers, in order, as llama2.c and as ModelConfig call them.
_NUMBERS = {
    "dim": "dim", "hidden_dim": "ffn_dim", "n_layers": "num_layers", "n_heads": "num_heads",
    "n_kv_heads": "num_kv_heads", "vocab_size": "vocab_size", "max_seq_len": "context_length",
}  # fmt: skip
# What run.c has built in.
_NORM_EPS, _ROPE_THETA = 1e-5, 10000.0


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
        return _parse_header(path, start).version == 0
    except FormatError:
        return False


def read(path: Path) -> Checkpoint:
    """Opens a file; FormatError unless it is exactly as long as its header says."""
    file = DataFile(path)
    header = _parse_header(path, file.read(0, min(_HEADER_BYTES, file.size), "header").tobytes())
    config = header.config
    _check_size(file, header)
    tensors: dict[str, LazyTensor] = {}
    at = header.num_bytes
    for name, shape in _layout(header.version, config):
        begin, at = at, at + _num_bytes(shape, header.group_size)
        if name != _ROTARY_TABLES:
            tensors[name] = _lazy(file, name, begin, shape, header.group_size)
    notes = ["norm epsilon 1e-05 and rotary base 10000 assumed: llama2.c files do not say"]
    if header.group_size:
        notes.append(f"int8 weights in groups of {header.group_size} are read as f32")
    return Checkpoint(
        format=NAME,
        path=path,
        config=config,
        tensors=rotary.half_split(tensors, config),
        load_vocabulary=lambda: _load_vocabulary(path.parent, config.vocab_size),
        notes=tuple(notes),
    )


def _check_size(file: DataFile, header: _Header) -> None:
    """FormatError unless the file ends where its last tensor does; makes nothing for a layer."""
    one_layer = replace(header.config, num_layers=1)
    expected = header.num_bytes
    for name, shape in _layout(header.version, one_layer):
        layers = header.config.num_layers if name.startswith("layers.") else 1
        expected += layers * _num_bytes(shape, header.group_size)
    if expected != file.size:
        state = "truncated" if expected > file.size else "too long"
        problem = f"the file is {state}: it has {file.size} bytes, its header asks for {expected}"
        raise FormatError(file.path, "weights", min(expected, file.size), problem)


def _parse_header(path: Path, start: bytes) -> _Header:
    """The header at the start of a file; FormatError where its numbers make no Llama."""
    if not start.startswith(MAGIC):
        if len(start) < 28:
            raise FormatError(path, "header", len(start), "truncated: it has 28 bytes")
        numbers = struct.unpack_from("<7i", start)
        # Version 0 says with the vocabulary's sign whether an output matrix of its own follows.
        tied = numbers[5] > 0
        magnitudes = (*numbers[:5], abs(numbers[5]), numbers[6])
        return _Header(0, 28, _config(path, 0, magnitudes, tied=tied))
    if len(start) < _HEADER_BYTES:
        problem = f"truncated: it has {_HEADER_BYTES} bytes"
        raise FormatError(path, "header", len(start), problem)
    version, *numbers_1, tied_byte, group_size = struct.unpack_from("<i7iBi", start, 4)
    if version not in (1, 2):
        problem = f"llama2.c version {version}; known are 0, 1 and 2"
        raise FormatError(path, "version", 4, problem)
    if tied_byte not in (0, 1):
        raise FormatError(path, "shared classifier", 36, f"it is {tied_byte}, neither 0 nor 1")
    config = _config(path, 8, tuple(numbers_1), tied=bool(tied_byte))
    if version == 1:
        return _Header(1, _HEADER_BYTES, config)
    if not 0 < group_size <= _MAX_NUMBER:
        raise FormatError(path, "group size", 37, f"groups of {group_size} are not plausible")
    for name, shape in replace(config, num_layers=1).tensor_shapes().items():
        if len(shape) == 2 and math.prod(shape) % group_size:
            problem = f"{name} does not divide into groups of {group_size}"
            raise FormatError(path, "group size", 37, problem)
    return _Header(2, _HEADER_BYTES, config, group_size)


def _config(path: Path, begin: int, numbers: tuple[int, ...], *, tied: bool) -> ModelConfig:
    """The shape of the seven numbers that stand from byte `begin` on."""
    places = {ours: begin + 4 * index for index, ours in enumerate(_NUMBERS.values())}
    theirs = {ours: name for name, ours in _NUMBERS.items()}
    values = dict(zip(places, numbers, strict=True))
    for field, value in values.items():
        if not 0 < value <= (_MAX_LAYERS if field == "num_layers" else _MAX_NUMBER):
            raise FormatError(path, theirs[field], places[field], f"{value} is not plausible")
    try:
        return ModelConfig(**values, norm_eps=_NORM_EPS, rope_theta=_ROPE_THETA, tied=tied)
    except ConfigError as error:
        raise FormatError(path, theirs[error.field], places[error.field], str(error)) from None


def _layout(version: int, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(canonical name, shape) of all that follows the header, in the file's order."""
    shapes = config.tensor_shapes()
    for name in _ORDERS[version]:
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


def _lazy(
    file: DataFile, name: str, begin: int, shape: tuple[int, ...], group_size: int
) -> LazyTensor:
    count = math.prod(shape)
    stored = (*shape[:-1], 4 * shape[-1])

    def read() -> Bytes:
        return file.read(begin, begin + 4 * count, name).reshape(stored)

    def dequantize() -> Bytes:
        """The int8 values of the flattened matrix, then one f32 scale per group of them."""
        end = begin + _num_bytes(shape, group_size)
        groups = file.read(begin, begin + count, name).view(np.int8).reshape(-1, group_size)
        scales = file.read(begin + count, end, name).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # scales may be infinite, or NaN
            return (groups * scales[:, None]).reshape(shape).view(np.uint8)

    floats = not group_size or len(shape) == 1
    origin = (file.identity(begin, begin + _num_bytes(shape, group_size)), f"groups {group_size}")
    return LazyTensor(
        shape, "f32", read if floats else dequantize, place=(file.path, begin), origin=origin
    )


def _load_vocabulary(folder: Path, vocab_size: int) -> Vocabulary | None:
    for name in (f"tok{vocab_size}.bin", _TOKENIZER, "tokenizer.model"):
        if (folder / name).is_file():
            return load_vocabulary(folder / name)
    return None


def losses(checkpoint: Checkpoint) -> list[str]:
    """What of a checkpoint its readers take for granted, where that differs."""
    config = checkpoint.config
    built_in = {"norm epsilon": (config.norm_eps, _NORM_EPS),
                "rotary base": (config.rope_theta, _ROPE_THETA)}  # fmt: skip
    return [
        f"the {what} {value:g} is lost: run.c computes with {fixed:g}"
        for what, (value, fixed) in built_in.items()
        if value != fixed
    ]


def write(
    checkpoint: Checkpoint,
    path: Path,
    *,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes version 0, all in f32, that run.c loads; with a vocabulary, `tokenizer.bin` beside it.

    Raises ValueError if another model's `tokenizer.bin` lies there, or if llama2.c cannot say this
    one's.
    """
    config = checkpoint.config
    tokenizer = path.with_name(_TOKENIZER)
    pieces = None
    if checkpoint.vocabulary is not None:
        # run.c reads as many pieces as the embedding has rows.
        pieces = write_bin(padded(checkpoint.vocabulary, config.vocab_size, PieceType.NORMAL))
        if tokenizer.is_file() and tokenizer.read_bytes() != pieces:
            raise ValueError(f"{tokenizer} is another model's; write to a folder of its own")
    tensors = rotary.interleaved(checkpoint.tensors, config)
    vocab_size = config.vocab_size if config.tied else -config.vocab_size
    numbers = [getattr(config, field) for field in _NUMBERS.values()]
    if max(numbers) > _MAX_NUMBER or config.num_layers > _MAX_LAYERS:
        raise ValueError(f"llama2.c cannot hold a model of {', '.join(map(str, numbers))}")
    numbers[list(_NUMBERS).index("vocab_size")] = vocab_size
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(struct.pack("<7i", *numbers))
        for name, _ in _layout(0, config):
            if name == _ROTARY_TABLES:
                file.write(_rotary_tables(config).data)
            else:
                tensor = tensors[name].watched(on_tensor, name).converted("f32")
                file.write(np.ascontiguousarray(tensor.read()).data)
    if pieces is not None and not tokenizer.is_file():
        with atomic_file(tokenizer) as file:
            file.write(pieces)


def _rotary_tables(config: ModelConfig) -> Floats:
    """Cosines, then sines, (context, half a head) each; run.c computes them anew."""
    half = np.arange(0, config.head_dim, 2) / config.head_dim
    angles = np.outer(np.arange(config.context_length), config.rope_theta**-half)
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
