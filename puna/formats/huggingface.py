"""Hugging Face folders: config.json, safetensors or `.bin` weights (sharded or not), tokenizer.

Config keys: https://huggingface.co/docs/transformers/model_doc/llama.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from puna.config import ModelConfig
from puna.formats import names
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.files import atomic_directory
from puna.formats.pickled import read_pickled
from puna.formats.safetensors_file import read_safetensors, write_safetensors
from puna.formats.vocabularies import beside, write_vocabulary

NAME = "huggingface"
MAX_SHARD_BYTES = 5_000_000_000

_TORCH_DTYPE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# (key, its value in every Llama 1 and 2): anything else changes the function.
_FIXED_KEYS = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "rope_scaling": None,
}
# Single file, index of shards, reader.
_Reader = Callable[[Path], dict[str, LazyTensor]]
_WEIGHTS: tuple[tuple[str, str, _Reader], ...] = (
    ("model.safetensors", "model.safetensors.index.json", lambda p: read_safetensors(p)[0]),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", read_pickled),
)
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"  # a buffer that old exports carry


def detect(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").is_file()


def read(path: Path) -> Checkpoint:
    """Opens a folder; ValueError if it is damaged or not a Llama."""
    config_file = read_json(path / "config.json")
    config = parse_config(config_file, path / "config.json")
    tensors = {}
    for foreign, tensor in _read_weights(path).items():
        if foreign.endswith(_IGNORED_SUFFIX):
            continue
        tensors[names.HUGGINGFACE.canonical(foreign) or foreign] = tensor
    if config.tied:
        tensors.pop("output.weight", None)  # some exports repeat the shared matrix
    return Checkpoint(
        format=NAME,
        path=path,
        config=config,
        tensors=tensors,
        load_vocabulary=lambda: beside(path),
        chat_template=_chat_template(path),
        name=str(config_file.get("_name_or_path") or ""),
        license=_license(path),
    )


def parse_config(values: dict[str, Any], where: Path) -> ModelConfig:
    """config.json -> ModelConfig; ValueError where it asks for what Llama 2 does not have."""
    if values.get("model_type") != "llama":
        raise ValueError(f"{where}: model_type is {values.get('model_type')!r}, not 'llama'")
    for key, fixed in _FIXED_KEYS.items():
        if values.get(key, fixed) != fixed:
            raise ValueError(f"{where}: {key} = {values[key]!r} is not supported")
    rope = values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{where}: rope_parameters is not an object")
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"{where}: rope_type = {rope['rope_type']!r} is not supported")
    try:
        num_heads = values["num_attention_heads"]
        config = ModelConfig(
            dim=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=values.get("num_key_value_heads") or num_heads,
            ffn_dim=values["intermediate_size"],
            vocab_size=values["vocab_size"],
            context_length=values.get("max_position_embeddings", 2048),
            norm_eps=values.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta") or values.get("rope_theta") or 10000.0,
            tied=values.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"{where} lacks {error.args[0]}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if values.get("head_dim") not in (None, config.head_dim):
        raise ValueError(f"{where}: head_dim = {values['head_dim']} is not supported")
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
    shards = _shards(tensors, max_shard_bytes)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = "model.safetensors"
        if len(shards) > 1:
            file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with open(folder / file_name, "xb") as file:
            write_safetensors(file, shard, {"format": "pt"})
        index |= dict.fromkeys(shard, file_name)
    if len(shards) > 1:
        total = {"metadata": {"total_size": checkpoint.num_bytes}, "weight_map": index}
        _write_json(folder / "model.safetensors.index.json", total)
    _write_json(folder / "config.json", _config_json(checkpoint))
    _write_tokenizer(checkpoint, folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError (with the file's name) for anything else."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_weights(path: Path) -> dict[str, LazyTensor]:
    for single, index_name, reader in _WEIGHTS:
        if (path / single).is_file():
            return reader(path / single)
        if (path / index_name).is_file():
            return _read_shards(path, path / index_name, reader)
    known = " or ".join(single for single, _, _ in _WEIGHTS)
    raise ValueError(f"{path} holds no weights: no {known}, nor an index of shards")


def _read_shards(path: Path, index_path: Path, reader: _Reader) -> dict[str, LazyTensor]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index_path} has no weight_map")
    tensors: dict[str, LazyTensor] = {}
    # The names come from a file that others wrote: they must stay in this folder.
    for file_name in weight_map.values():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise ValueError(f"{index_path} names a shard outside its folder: {file_name!r}")
    for file_name in sorted(set(weight_map.values())):
        if not (path / file_name).is_file():
            raise ValueError(f"{path} lacks the shard {file_name}")
        tensors |= reader(path / file_name)
    return tensors


def _shards(tensors: Mapping[str, LazyTensor], max_bytes: int) -> list[dict[str, LazyTensor]]:
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.num_bytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.num_bytes
    return shards


def _config_json(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    main_dtype = next(iter(checkpoint.dtype_bytes()))
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
        "torch_dtype": _TORCH_DTYPE[main_dtype],
    }
    if checkpoint.vocabulary is not None:
        values["bos_token_id"] = checkpoint.vocabulary.bos_id
        values["eos_token_id"] = checkpoint.vocabulary.eos_id
    return values


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
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
    _write_json(folder / "tokenizer_config.json", config)


def _chat_template(path: Path) -> str | None:
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    if not (path / "tokenizer_config.json").is_file():
        return None
    values = read_json(path / "tokenizer_config.json")
    template = values.get("chat_template")
    return template if isinstance(template, str) else None


def _license(path: Path) -> str:
    """The `license:` of the model card's front matter, if there is one."""
    if not (path / "README.md").is_file():
        return ""
    for line in (path / "README.md").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("license:"):
            return line.removeprefix("license:").strip()
    return ""
