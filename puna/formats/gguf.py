"""GGUF model files (`.gguf`, architecture `llama`): configuration, tokenizer and weights in one.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The container is `gguf_file.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from puna.config import ConfigError, ModelConfig
from puna.formats import names, rotary
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.files import atomic_file
from puna.formats.gguf_file import MAGIC, Header, write_gguf
from puna.formats.gguf_split import read_whole
from puna.tokenizer import Vocabulary
from puna.tokenizer.gguf import PREFIX, read_metadata, write_metadata
from puna.tokenizer.vocabulary import VocabularyError, padded

NAME = "gguf"

# Field of ModelConfig -> its key.
_KEYS = {
    "dim": "llama.embedding_length",
    "num_layers": "llama.block_count",
    "num_heads": "llama.attention.head_count",
    "num_kv_heads": "llama.attention.head_count_kv",
    "ffn_dim": "llama.feed_forward_length",
    "context_length": "llama.context_length",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
}
# Key -> the values (besides a missing one) with which it changes nothing.
_NEUTRAL_KEYS: dict[str, tuple[Any, ...]] = {
    "llama.rope.scaling.type": ("none",),
    "llama.rope.scaling.factor": (0, 1),
    "llama.rope.scale_linear": (0, 1),
    "llama.expert_count": (0,),
    "general.type": ("model",),
}
_HEAD_DIMS = tuple(
    f"llama.{key}" for key in ("rope.dimension_count", "attention.key_length",
                               "attention.value_length")
)  # fmt: skip
# A storage type or mix -> `general.file_type`, what the file is mostly (llama.cpp's LLAMA_FTYPE).
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10,
    "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16,
    "q5_k_m": 17, "q6_k": 18, "q2_k_s": 21, "bf16": 32,
}  # fmt: skip
_QUANTIZATION_VERSION = 2


def detect(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> Checkpoint:
    """Opens a file, or all parts of a split one; FormatError for damage and other models."""
    header, foreign = read_whole(path)
    config = _parse_config(header, foreign)
    tensors = {names.GGUF.canonical(name) or name: tensor for name, tensor in foreign.items()}
    return Checkpoint(
        format=NAME,
        path=path,
        config=config,
        tensors=rotary.half_split(tensors, config),
        load_vocabulary=lambda: _load_vocabulary(header, config.vocab_size),
        chat_template=_text(header, "tokenizer.chat_template") or None,
        name=_text(header, "general.name"),
        license=_text(header, "general.license"),
    )


def _parse_config(header: Header, tensors: Mapping[str, LazyTensor]) -> ModelConfig:
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        problem = f"the model is of architecture {architecture!r}, not 'llama'"
        raise header.error("general.architecture", problem)
    for key, neutral in _NEUTRAL_KEYS.items():
        value = metadata.get(key, neutral[0])
        if not isinstance(value, int | float | str) or value not in neutral:
            raise header.error(key, f"{key} = {value!r} is not supported")
    if "rope_freqs.weight" in tensors:
        problem = "the file scales its rotary frequencies, which is not supported"
        raise header.error("rope_freqs.weight", problem)
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        problem = "the file lacks it; does it hold only a tokenizer?"
        raise header.error("token_embd.weight", problem)
    values: dict[str, Any] = {field: metadata.get(key) for field, key in _KEYS.items()}
    if values["num_kv_heads"] is None:
        values["num_kv_heads"] = values["num_heads"]
    if values["rope_theta"] is None:
        values["rope_theta"] = 10000.0
    if missing := [_KEYS[field] for field, value in values.items() if value is None]:
        raise header.error(missing[0], f"the file lacks the keys {', '.join(missing)}")
    try:
        config = ModelConfig(
            **values, vocab_size=embedding.shape[0], tied="output.weight" not in tensors
        )
    except ConfigError as error:
        raise header.error(_KEYS.get(error.field, error.field), str(error)) from None
    for key in _HEAD_DIMS:
        value = metadata.get(key, config.head_dim)
        if type(value) is not int or value != config.head_dim:
            problem = f"{value!r} is not supported; the heads have {config.head_dim} dimensions"
            raise header.error(key, problem)
    return config


def _load_vocabulary(header: Header, most: int) -> Vocabulary | None:
    """The tokenizer in the file, of `most` pieces or fewer; None where it has none."""
    if not any(key.startswith(PREFIX) for key in header.metadata):
        return None
    try:
        return read_metadata(header.metadata, most)
    except VocabularyError as error:
        raise header.error(error.field, str(error)) from None


def _text(header: Header, key: str) -> str:
    value = header.metadata.get(key)
    return value if isinstance(value, str) else ""


def write(
    checkpoint: Checkpoint,
    path: Path,
    *,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
    file_type: str | None = None,
) -> None:
    """Writes a file that llama.cpp loads. Norms become F32, which its kernels need.

    `file_type` is the name of the mix that the tensors are in, None if they are all in one type.
    """
    config = checkpoint.config
    tensors = {
        names.GGUF.foreign(name): (
            tensor.converted("f32") if len(tensor.shape) == 1 else tensor
        ).watched(on_tensor, name)
        for name, tensor in rotary.interleaved(checkpoint.tensors, config).items()
    }
    metadata = _metadata(checkpoint, file_type)
    with atomic_file(path, overwrite=overwrite) as file:
        write_gguf(file, metadata, tensors)


def _metadata(checkpoint: Checkpoint, file_type: str | None = None) -> dict[str, Any]:
    config = checkpoint.config
    name = file_type or checkpoint.main_dtype
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": checkpoint.name or checkpoint.path.stem,
    }
    if checkpoint.license:
        metadata["general.license"] = checkpoint.license
    metadata |= {
        "general.file_type": FILE_TYPES[name if name in FILE_TYPES else f"{name}_s"],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **{key: getattr(config, field) for field, key in _KEYS.items()},
        "llama.rope.dimension_count": config.head_dim,
        "llama.vocab_size": config.vocab_size,
    }
    # A whole number is an int to JSON and a float to llama.cpp.
    for field in ("norm_eps", "rope_theta"):
        metadata[_KEYS[field]] = float(getattr(config, field))
    if checkpoint.vocabulary is not None:
        metadata |= write_metadata(padded(checkpoint.vocabulary, config.vocab_size))
    if checkpoint.chat_template:
        metadata["tokenizer.chat_template"] = checkpoint.chat_template
    return metadata
