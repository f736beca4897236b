"""GGUF model files (`.gguf`, architecture `llama`): configuration, tokenizer and weights in one.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The container is `gguf_file.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from puna.config import ModelConfig
from puna.formats import names, rotary
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.files import atomic_file
from puna.formats.gguf_file import MAGIC, read_gguf, write_gguf
from puna.tokenizer import PieceType, Vocabulary
from puna.tokenizer.gguf import read_metadata, write_metadata

NAME = "gguf"

# Field of ModelConfig -> its key under `llama.`.
_KEYS = {
    "dim": "embedding_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "ffn_dim": "feed_forward_length",
    "context_length": "context_length",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
# Key -> the values (besides a missing one) with which it changes nothing.
_NEUTRAL_KEYS: dict[str, tuple[Any, ...]] = {
    "llama.rope.scaling.type": ("none",),
    "llama.rope.scaling.factor": (0, 1),
    "llama.rope.scale_linear": (0, 1),
    "llama.expert_count": (0,),
    "general.type": ("model",),
}
# Storage type -> `general.file_type`, what the file is mostly (llama.cpp's LLAMA_FTYPE).
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_QUANTIZATION_VERSION = 2
_PADDING_SCORE = -10000.0


def detect(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> Checkpoint:
    """Opens a file; ValueError if it is damaged, split, or no Llama that Puna knows."""
    metadata, foreign = read_gguf(path)
    config = _parse_config(metadata, foreign, path)
    tensors = {names.GGUF.canonical(name) or name: tensor for name, tensor in foreign.items()}
    return Checkpoint(
        format=NAME,
        path=path,
        config=config,
        tensors=rotary.half_split(tensors, config),
        load_vocabulary=lambda: _load_vocabulary(metadata, path),
        chat_template=_text(metadata, "tokenizer.chat_template") or None,
        name=_text(metadata, "general.name"),
        license=_text(metadata, "general.license"),
    )


def _parse_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, LazyTensor], path: Path
) -> ModelConfig:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{path} is of architecture {architecture!r}, not 'llama'")
    num_parts = metadata.get("split.count", 1)
    if num_parts not in (0, 1):
        raise ValueError(
            f"{path} is one of {num_parts} parts; split GGUF files are not supported yet: join "
            "them with llama-gguf-split --merge"
        )
    for key, neutral in _NEUTRAL_KEYS.items():
        if key in metadata and metadata[key] not in neutral:
            raise ValueError(f"{path}: {key} = {metadata[key]!r} is not supported")
    if "rope_freqs.weight" in tensors:
        raise ValueError(f"{path} scales its rotary frequencies, which is not supported")
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise ValueError(f"{path} lacks token_embd.weight; does it hold only a tokenizer?")
    values: dict[str, Any] = {field: metadata.get(f"llama.{key}") for field, key in _KEYS.items()}
    if values["num_kv_heads"] is None:
        values["num_kv_heads"] = values["num_heads"]
    if values["rope_theta"] is None:
        values["rope_theta"] = 10000.0
    if missing := [f"llama.{_KEYS[field]}" for field, value in values.items() if value is None]:
        raise ValueError(f"{path} lacks the keys {', '.join(missing)}")
    for field in ("norm_eps", "rope_theta"):
        if isinstance(values[field], float):
            # The decimal that was meant: as an f32, 1e-5 is 9.99999974737875e-06.
            values[field] = float(str(np.float32(values[field])))
    try:
        config = ModelConfig(
            **values, vocab_size=embedding.shape[0], tied="output.weight" not in tensors
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if metadata.get(f"llama.{key}", config.head_dim) != config.head_dim:
            raise ValueError(
                f"{path}: llama.{key} = {metadata[f'llama.{key}']!r} is not supported; its heads "
                f"have {config.head_dim} dimensions"
            )
    return config


def _load_vocabulary(metadata: Mapping[str, Any], path: Path) -> Vocabulary | None:
    if not any(key.startswith("tokenizer.ggml.") for key in metadata):
        return None
    try:
        return read_metadata(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def write(
    checkpoint: Checkpoint,
    path: Path,
    *,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes a file that llama.cpp loads. Norms become F32, which its kernels need."""
    config = checkpoint.config
    tensors = {
        names.GGUF.foreign(name): (
            tensor.converted("f32") if len(tensor.shape) == 1 else tensor
        ).watched(on_tensor, name)
        for name, tensor in rotary.interleaved(checkpoint.tensors, config).items()
    }
    metadata = _metadata(checkpoint)
    with atomic_file(path, overwrite=overwrite) as file:
        write_gguf(file, metadata, tensors)


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    main_dtype = next(iter(checkpoint.dtype_bytes()))
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": checkpoint.name or checkpoint.path.stem,
    }
    if checkpoint.license:
        metadata["general.license"] = checkpoint.license
    metadata |= {
        "general.file_type": _FILE_TYPES[main_dtype],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **{f"llama.{key}": getattr(config, field) for field, key in _KEYS.items()},
        "llama.rope.dimension_count": config.head_dim,
        "llama.vocab_size": config.vocab_size,
    }
    # A whole number is an int to JSON and a float to llama.cpp.
    for field in ("norm_eps", "rope_theta"):
        metadata[f"llama.{_KEYS[field]}"] = float(getattr(config, field))
    if checkpoint.vocabulary is not None:
        metadata |= write_metadata(_padded(checkpoint.vocabulary, config.vocab_size))
    if checkpoint.chat_template:
        metadata["tokenizer.chat_template"] = checkpoint.chat_template
    return metadata


def _padded(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """The vocabulary with an unused piece for each padding row: llama.cpp wants one per row."""
    padding = size - len(vocabulary)
    return dataclasses.replace(
        vocabulary,
        pieces=(*vocabulary.pieces, *(f"[PAD{i}]" for i in range(len(vocabulary), size))),
        scores=(*vocabulary.scores, *(_PADDING_SCORE for _ in range(padding))),
        types=(*vocabulary.types, *(PieceType.UNUSED for _ in range(padding))),
    )
