"""Hugging Face folders: config.json, safetensors or `.bin` weights (sharded or not), tokenizer.

Config keys: https://huggingface.co/docs/transformers/model_doc/llama.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from puna.config import ConfigError, ModelConfig
from puna.formats import names
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import FormatError
from puna.formats.files import DataFile, atomic_directory
from puna.formats.json_text import JsonObject, read_json
from puna.formats.model_card import read_card, write_card
from puna.formats.pickled import read_pickled
from puna.formats.safetensors_file import read_safetensors, write_safetensors
from puna.formats.vocabularies import beside, write_vocabulary

NAME = "huggingface"
MAX_SHARD_BYTES = 5_000_000_000
CHAT_TEMPLATE = "chat_template.jinja"

_TORCH_DTYPE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# Field of ModelConfig -> its key, and what a key that is left out means.
_KEYS = {
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tied": "tie_word_embeddings",
}
_DEFAULTS = {
    "num_key_value_heads": None,  # as many as num_attention_heads
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": None,  # in rope_parameters, or 10000
    "tie_word_embeddings": False,
}
# (key, its value in every Llama 1 and 2): anything else changes the function.
_FIXED_KEYS = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "rope_scaling": None,
}
# Single file, index of shards, reader.
_Reader = Callable[[Path], dict[str, LazyTensor]]
_MAX_TEMPLATE = 1_000_000  # bytes
_MAX_NAME = 255  # bytes of a file's name
_T = TypeVar("_T")
_WEIGHTS: tuple[tuple[str, str, _Reader], ...] = (
    ("model.safetensors", "model.safetensors.index.json", lambda p: read_safetensors(p)[0]),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", read_pickled),
)
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"  # a buffer that old exports carry


def detect(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").is_file()


def read(path: Path) -> Checkpoint:
    """Opens a folder; ValueError if it is damaged or not a Llama."""
    values = read_json(path / "config.json")
    config = parse_config(values)
    tensors = {}
    for foreign, tensor in _read_weights(path).items():
        if foreign.endswith(_IGNORED_SUFFIX):
            continue
        tensors[names.HUGGINGFACE.canonical(foreign) or foreign] = tensor
    if "score.weight" in tensors and "output.weight" not in tensors:
        config = replace(config, tied=True)  # a scorer has no next-token head to weigh
    if config.tied:
        tensors.pop("output.weight", None)  # some exports repeat the shared matrix
    card = read_card(path)
    return Checkpoint(
        format=NAME,
        path=path,
        config=config,
        tensors=tensors,
        load_vocabulary=lambda: beside(path),
        chat_template=read_chat_template(path),
        name=card.get("model_name") or values.text("_name_or_path"),
        license=card.get("license", ""),
    )


def parse_config(values: JsonObject) -> ModelConfig:
    """config.json -> ModelConfig; FormatError where it asks for what Llama 2 does not have."""
    if values.get("model_type") != "llama":
        raise values.error("model_type", f"model_type is {values.get('model_type')!r}, not 'llama'")
    for key, fixed in _FIXED_KEYS.items():
        if values.get(key, fixed) != fixed:
            raise values.error(key, f"{key} = {values[key]!r} is not supported")
    rope = values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise values.error("rope_parameters", "rope_parameters is not an object")
    if rope.get("rope_type", "default") != "default":
        problem = f"rope_type = {rope['rope_type']!r} is not supported"
        raise values.error("rope_parameters", problem)
    for key in _KEYS.values():
        if key not in values and key not in _DEFAULTS:
            raise values.error(key, "the file lacks this key")
    given: dict[str, Any] = {
        field: values.get(key, _DEFAULTS.get(key)) for field, key in _KEYS.items()
    }
    given["num_kv_heads"] = given["num_kv_heads"] or given["num_heads"]
    given["rope_theta"] = rope.get("rope_theta") or given["rope_theta"] or 10000.0
    try:
        config = ModelConfig(**given)
    except ConfigError as error:
        raise values.error(_KEYS[error.field], str(error)) from None
    if values.get("head_dim") not in (None, config.head_dim):
        raise values.error("head_dim", f"head_dim = {values['head_dim']!r} is not supported")
    return config


def write(
    checkpoint: Checkpoint,
    path: Path,
    *,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a folder that transformers loads; nothing is left behind if it fails."""
    with atomic_directory(path, overwrite=overwrite) as folder:
        write_into(checkpoint, folder, on_tensor=on_tensor, max_shard_bytes=max_shard_bytes)


def write_into(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    on_tensor: Callable[[str], None] = lambda name: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Fills an existing folder, for callers that add files of their own to it."""
    tensors = {
        names.HUGGINGFACE.foreign(name): tensor.watched(on_tensor, name)
        for name, tensor in checkpoint.tensors.items()
    }
    sizes = {name: tensor.num_bytes for name, tensor in tensors.items()}
    index: dict[str, str] = {}
    for file_name, shard in shards(sizes, max_shard_bytes).items():
        with open(folder / file_name, "xb") as file:
            write_safetensors(file, {name: tensors[name] for name in shard}, {"format": "pt"})
        index |= dict.fromkeys(shard, file_name)
    write_index(folder, index, sum(sizes.values()))
    dtype = _TORCH_DTYPE[checkpoint.main_dtype]
    write_json(folder / "config.json", config_json(checkpoint, dtype))
    write_tokenizer(checkpoint, folder)
    write_card(folder, checkpoint.name, checkpoint.license)


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_weights(path: Path) -> dict[str, LazyTensor]:
    for single, index_name, reader in _WEIGHTS:
        if (path / single).is_file():
            return reader(path / single)
        if (path / index_name).is_file():
            return read_shards(path, path / index_name, reader)
    known = " or ".join(single for single, _, _ in _WEIGHTS)
    problem = f"the folder holds no weights: no {known}, nor an index of shards"
    raise FormatError(path, "weights", 0, problem)


def read_shards(
    path: Path, index_path: Path, reader: Callable[[Path], dict[str, _T]]
) -> dict[str, _T]:
    """The tensors of all files of a folder that its index names; FormatError for bad names."""
    index = read_json(index_path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise index.error("weight_map", "the file has no weight_map from tensors to files")
    tensors: dict[str, _T] = {}
    # The names come from a file that others wrote: they must stay in this folder.
    for file_name in weight_map.values():
        if (
            not isinstance(file_name, str)
            or Path(file_name).name != file_name
            or len(file_name.encode()) > _MAX_NAME
        ):
            raise index.error("weight_map", f"it names a shard outside its folder: {file_name!r}")
    for file_name in sorted(set(weight_map.values())):
        if not (path / file_name).is_file():
            raise index.error("weight_map", f"the folder lacks the shard {file_name}")
        for name, tensor in reader(path / file_name).items():
            if name in tensors:
                raise FormatError(path / file_name, name, 0, "this tensor is in another shard too")
            tensors[name] = tensor
    return tensors


def shards(sizes: Mapping[str, int], max_bytes: int) -> dict[str, list[str]]:
    """File name -> the tensors in it, in order; `sizes` are their bytes."""
    lists: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if lists[-1] and total + size > max_bytes:
            lists.append([])
            total = 0
        lists[-1].append(name)
        total += size
    if len(lists) == 1:
        return {"model.safetensors": lists[0]}
    count = len(lists)
    return {
        f"model-{number:05}-of-{count:05}.safetensors": shard
        for number, shard in enumerate(lists, start=1)
    }


def write_index(folder: Path, index: Mapping[str, str], total_size: int) -> None:
    """The index of shards (tensor -> file name), where there is more than one."""
    if len(set(index.values())) > 1:
        values = {"metadata": {"total_size": total_size}, "weight_map": dict(index)}
        write_json(folder / "model.safetensors.index.json", values)


def config_json(checkpoint: Checkpoint, torch_dtype: str) -> dict[str, Any]:
    """What config.json says of a model whose floats are `torch_dtype`."""
    config = checkpoint.config
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": torch_dtype,
    }
    if "score" in checkpoint.heads:
        values["architectures"] = ["LlamaForSequenceClassification"]
        values["id2label"] = {"0": "LABEL_0"}  # how transformers counts outputs: one
        values["label2id"] = {"LABEL_0": 0}
    if checkpoint.vocabulary is not None:
        values["bos_token_id"] = checkpoint.vocabulary.bos_id
        values["eos_token_id"] = checkpoint.vocabulary.eos_id
        if "score" in checkpoint.heads:
            # Scores are read before the padding; EOS, the usual one, is what they are read at.
            values["pad_token_id"] = checkpoint.vocabulary.unk_id
    return values


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    vocabulary = checkpoint.vocabulary
    if vocabulary is None:
        return
    has_json = write_vocabulary(vocabulary, folder)
    config: dict[str, Any] = {
        # transformers 5's LlamaTokenizer drops a space that begins a text; this class reads
        # tokenizer.json as it stands.
        "tokenizer_class": "PreTrainedTokenizerFast" if has_json else "LlamaTokenizer",
        "bos_token": vocabulary.pieces[vocabulary.bos_id],
        "eos_token": vocabulary.pieces[vocabulary.eos_id],
        "unk_token": vocabulary.pieces[vocabulary.unk_id],
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": vocabulary.add_space_prefix,
        "legacy": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": checkpoint.config.context_length,
    }
    if checkpoint.chat_template:
        config["chat_template"] = checkpoint.chat_template
    write_json(folder / "tokenizer_config.json", config)
    ids = {"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id}
    write_json(folder / "generation_config.json", ids)


def read_chat_template(path: Path) -> str | None:
    if (path / CHAT_TEMPLATE).is_file():
        return _read_text(path / CHAT_TEMPLATE)
    if not (path / "tokenizer_config.json").is_file():
        return None
    return read_json(path / "tokenizer_config.json").text("chat_template") or None


def _read_text(path: Path) -> str:
    file = DataFile(path)
    if file.size > _MAX_TEMPLATE:
        problem = f"{file.size} bytes are not plausible for a chat template"
        raise FormatError(path, "text", 0, problem)
    try:
        return file.read(0, file.size, "text").tobytes().decode()
    except UnicodeDecodeError as error:
        raise FormatError(path, "text", error.start, "it is not UTF-8") from None


def read_license(path: Path) -> str:
    """The licence that a folder's model card names, if it does."""
    return read_card(path).get("license", "")
