"""GGML model files (`.bin`; magics `ggml`, `ggmf`, `ggjt`), what Llama 2 was shared in before GGUF.

https://github.com/ggml-org/llama.cpp/blob/master/convert_llama_ggml_to_gguf.py. The header holds
seven numbers; the rest of the shape follows from the tensors, or is assumed and said so. The
container is `ggml_file.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puna.config import ModelConfig
from puna.formats import rotary
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import FormatError
from puna.formats.files import DataFile, atomic_file
from puna.formats.ggml_file import (
    TYPE_IDS,
    Cursor,
    Record,
    lazy,
    read_records,
    write_records,
)
from puna.quantize.mixes import ALIASES
from puna.tokenizer import PieceType, Vocabulary
from puna.tokenizer.ggml import read_pieces, write_pieces
from puna.tokenizer.vocabulary import MAX_PIECES, VocabularyError

NAME = "ggml"
HOLDS = tuple(TYPE_IDS.values())


@dataclass(frozen=True, slots=True)
class _Version:
    """`types` are those whose blocks are still today's."""

    label: str
    magic: bytes
    number: int | None
    types: tuple[str, ...]
    has_scores: bool = True
    padded: bool = True


_FLOATS = ("f32", "f16")
_VERSIONS = (
    _Version("unversioned ggml", b"lmgg", None, _FLOATS, has_scores=False, padded=False),
    _Version("ggmf version 1", b"fmgg", 1, _FLOATS, padded=False),
    _Version("ggjt version 1", b"tjgg", 1, _FLOATS),
    # Version 3 changed the scales of Q4_0, Q4_1 and Q8_0 from f32 to f16; the Q5s had f16.
    _Version("ggjt version 2", b"tjgg", 2, (*_FLOATS, "q5_0", "q5_1")),
    _Version("ggjt version 3", b"tjgg", 3, HOLDS),
)
_MAGICS = {version.magic for version in _VERSIONS}
_ADAPTER_MAGIC = b"algg"

# Field -> (what it is called, what Llama 2 has): not in the file.
_ASSUMED = {
    "norm_eps": ("norm epsilon", 1e-5),
    "context_length": ("context length", 4096),
    "rope_theta": ("rotary base", 10000.0),
}
# A mix's name -> `ftype`, what the file is mostly (llama.cpp's LLAMA_FTYPE).
_FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9,
    "q2_k": 10, "q2_k_s": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15,
    "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18,
}  # fmt: skip
_MAX_PIECE = 4096  # bytes
_MULTIPLE_OF = 256


@dataclass(frozen=True, slots=True)
class _Header:
    """`numbers_at` and `pieces_at` are where those parts begin."""

    version: _Version
    numbers_at: int
    num_pieces: int
    dim: int
    num_heads: int
    num_layers: int
    num_rotated: int
    pieces_at: int


def detect(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) in (*_MAGICS, _ADAPTER_MAGIC)


def read(path: Path) -> Checkpoint:
    """Opens a file; FormatError if it is damaged, of blocks no longer known, or no Llama."""
    cursor = Cursor(DataFile(path))
    header = _read_header(cursor)
    _skip_pieces(cursor, header)
    pieces_end = cursor.at
    records = {}
    for name, record in read_records(cursor, padded=header.version.padded):
        if record.dtype not in header.version.types:
            raise cursor.error(
                name,
                f"is {record.dtype} as {header.version.label} stored it, in blocks of another "
                "layout; quantize the original weights again, or find the file as ggjt version 3 "
                "or GGUF",
                record.at,
            )
        records[name] = record
    config = _config(cursor, header, records)
    _check_records(cursor, config, records)
    tensors = {name: lazy(cursor.file, name, record) for name, record in records.items()}
    notes = [
        ", ".join(f"{label} {value:g}" for label, value in _ASSUMED.values())
        + " assumed, which are Llama 2's: GGML files do not say (LLaMA 1 has 1e-06 and 2048)"
    ]
    if not header.version.has_scores:
        notes.append("the file has no scores for its pieces: they are taken to be Llama's")
    return Checkpoint(
        format=NAME,
        path=path,
        config=config,
        tensors=rotary.half_split(tensors, config),
        load_vocabulary=lambda: _read_vocabulary(cursor.file, header, pieces_end),
        notes=tuple(notes),
    )


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a model file, or of one that holds nothing else; FormatError if none."""
    cursor = Cursor(DataFile(path))
    header = _read_header(cursor)
    _skip_pieces(cursor, header)
    vocabulary = _read_vocabulary(cursor.file, header, cursor.at)
    if vocabulary is None:
        raise FormatError(path, "vocabulary", header.pieces_at, "has no pieces")
    return vocabulary


def _read_header(cursor: Cursor) -> _Header:
    magic = cursor.take(4, "magic")
    if magic == _ADAPTER_MAGIC:
        raise cursor.error("magic", "is a LoRA adapter's; merge it with puna convert --lora", 0)
    known = [version for version in _VERSIONS if version.magic == magic]
    if not known:
        raise cursor.error("magic", f"{magic!r} is no GGML file's", 0)
    version = known[0]
    if version.number is not None:
        (number,) = cursor.numbers("I", "version")
        found = next((version for version in known if version.number == number), None)
        if found is None:
            numbers = ", ".join(str(version.number) for version in known)
            raise cursor.error("version", f"{number} is not known; known are {numbers}", 4)
        version = found
    at = cursor.at
    num_pieces, dim, _, num_heads, num_layers, num_rotated, _ = cursor.numbers("7I", "header")
    return _Header(version, at, num_pieces, dim, num_heads, num_layers, num_rotated, cursor.at)


def _skip_pieces(cursor: Cursor, header: _Header) -> None:
    """Moves past the vocabulary, checking that the file holds it."""
    num_pieces, score_bytes = header.num_pieces, 4 * header.version.has_scores
    if num_pieces > min(MAX_PIECES, cursor.left // (4 + score_bytes)):
        raise cursor.error("n_vocab", f"{num_pieces} pieces are more than the file holds",
                           header.numbers_at)  # fmt: skip
    for token in range(num_pieces):
        field = f"piece {token} of the vocabulary"
        (length,) = cursor.numbers("I", field)
        if length > _MAX_PIECE:
            raise cursor.error(field, f"has a length of {length} bytes", cursor.at - 4)
        cursor.skip(length + score_bytes, field)


def _read_vocabulary(file: DataFile, header: _Header, end: int) -> Vocabulary | None:
    data = file.read(header.pieces_at, end, "vocabulary").tobytes()
    try:
        return read_pieces(data, header.num_pieces, has_scores=header.version.has_scores)
    except VocabularyError as error:
        at = header.pieces_at + error.offset
        raise FormatError(file.path, error.field, at, str(error)) from None


def _config(cursor: Cursor, header: _Header, records: Mapping[str, Record]) -> ModelConfig:
    """The shape, from the header and the first layer."""
    sizes = {}
    for name in ("attention.wk", "feed_forward.w1"):
        record = records.get(f"layers.0.{name}.weight")
        if record is None:
            raise cursor.error(f"layers.0.{name}.weight", "is not in the file")
        sizes[name] = record.shape[0]
    head_dim = header.num_rotated
    if head_dim == 0 or head_dim * header.num_heads != header.dim:
        raise cursor.error(
            "n_rot",
            f"{header.num_heads} heads of {head_dim} are not n_embd {header.dim}; is it no Llama?",
            header.numbers_at + 20,
        )
    if sizes["attention.wk"] % head_dim:
        raise cursor.error(
            "layers.0.attention.wk.weight",
            f"has {sizes['attention.wk']} rows, which are no number of heads of {head_dim}",
            records["layers.0.attention.wk.weight"].at,
        )
    if header.num_layers > len(records):  # before anything is made for each layer
        raise cursor.error(
            "n_layer",
            f"{header.num_layers} layers, but {len(records)} tensors are in the file",
            header.numbers_at + 16,
        )
    try:
        return ModelConfig(
            dim=header.dim,
            num_layers=header.num_layers,
            num_heads=header.num_heads,
            num_kv_heads=sizes["attention.wk"] // head_dim,
            ffn_dim=sizes["feed_forward.w1"],
            vocab_size=header.num_pieces,
        )
    except ValueError as error:
        raise cursor.error("header", str(error), header.numbers_at) from None


def _check_records(cursor: Cursor, config: ModelConfig, records: Mapping[str, Record]) -> None:
    expected = config.tensor_shapes()
    for name, record in records.items():
        if name not in expected:
            raise cursor.error(
                name, f"is no tensor of a Llama of {config.num_layers} layers", record.at
            )
        if record.shape != expected[name]:
            raise cursor.error(
                name, f"has shape {record.shape}, the header says {expected[name]}", record.at
            )
    for name in expected:
        if name not in records:
            raise cursor.error(name, "is not in the file; is it cut off, or one of several parts?")


def write(
    checkpoint: Checkpoint,
    path: Path,
    *,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
    file_type: str | None = None,
) -> None:
    """Writes `ggjt` version 3, as llama.cpp of July 2023 loaded it; a tied head as a copy.

    Norms become F32. `file_type` is the mix to name in the header, by default what most bytes are.
    """
    config = checkpoint.config
    tensors = {
        name: (tensor.converted("f32") if len(tensor.shape) == 1 else tensor).watched(
            on_tensor, name
        )
        for name, tensor in rotary.interleaved(checkpoint.tensors, config).items()
    }
    if config.tied:
        tensors["output.weight"] = checkpoint.tensors["tok_embeddings.weight"]
    for name, tensor in tensors.items():
        if tensor.dtype not in HOLDS:
            raise ValueError(f"a GGML file cannot hold {name} as {tensor.dtype}; give --dtype f16")
    numbers = (
        config.vocab_size,
        config.dim,
        _multiple_of(config) or _MULTIPLE_OF,
        config.num_heads,
        config.num_layers,
        config.head_dim,
        _FILE_TYPES[file_type or _main_type(tensors)],
    )
    pieces = write_pieces(checkpoint.vocabulary, config.vocab_size)
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(b"tjgg" + struct.pack("<8I", 3, *numbers) + pieces)
        write_records(file, tensors)


def _main_type(tensors: Mapping[str, LazyTensor]) -> str:
    """The mix that most bytes suggest."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.num_bytes
    main = max(sizes, key=lambda dtype: sizes[dtype])
    return ALIASES.get(main, main)


def _multiple_of(config: ModelConfig) -> int | None:
    """`n_mult`, of which llama.cpp computed the feed-forward width; None where none gives it."""
    width = np.uint32(8 * config.dim // 3)
    if config.num_layers == 80 and config.num_heads == 8 * config.num_kv_heads:
        width = np.uint32(np.float32(1.3) * np.float32(width))  # how it knew the 70B
    for multiple in (_MULTIPLE_OF, 4096, config.ffn_dim):
        if -(-int(width) // multiple) * multiple == config.ffn_dim:
            return multiple
    return None


def losses(checkpoint: Checkpoint) -> list[str]:
    """What a GGML file cannot say of this checkpoint, besides its name, licence and template."""
    config, vocabulary = checkpoint.config, checkpoint.vocabulary
    lost = [
        f"the {label} {getattr(config, field):g} is lost: a GGML file is read with {value:g}"
        for field, (label, value) in _ASSUMED.items()
        if getattr(config, field) != value
    ]
    if config.tied:
        lost.append("the output head is stored as a matrix of its own, a copy of the embedding")
    if config.num_kv_heads != config.num_heads:
        group = config.num_heads // config.num_kv_heads
        lost.append(f"llama.cpp of 2023 has to be told of the key/value heads: -gqa {group}")
    if _multiple_of(config) is None:
        lost.append(
            f"llama.cpp of 2023 cannot load a feed-forward width of {config.ffn_dim}, less than "
            "8/3 of the model width; Puna can"
        )
    if vocabulary is not None and (count := vocabulary.types.count(PieceType.USER_DEFINED)):
        lost.append(f"{count} user-defined pieces of the tokenizer become plain ones")
    return lost
