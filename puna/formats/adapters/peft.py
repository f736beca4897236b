"""PEFT folders: adapter_config.json and adapter_model.safetensors or adapter_model.bin.

https://huggingface.co/docs/peft/developer_guides/checkpoint. Only what adds a low-rank product to
a matrix is read; a setting that does anything else is refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.formats import names
from puna.formats.adapters.adapter import Adapter, Half, paired, transposed
from puna.formats.checkpoint import LazyTensor
from puna.formats.errors import FormatError
from puna.formats.json_text import JsonObject, read_json
from puna.formats.pickled import read_pickled
from puna.formats.safetensors_file import read_safetensors, write_safetensors

NAME = "peft"

_CONFIG = "adapter_config.json"
# Setting -> the values with which it is a plain LoRA; a missing one is plain.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None,),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
}
# Initialisations that change the base weights, which the adapter then counts on.
_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga")

_MATRIX = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[\w-]+)?\.weight")
_EMBEDDING = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_embedding_([AB])(?:\.[\w-]+)?")
_PREFIX = "base_model.model."
_BASE = ".base_layer.weight"  # a copy of the base's own embedding
_MAX_NUMBER = 1e9
_PATTERN = re.compile(r"\^?(?:\w|\.|\\\.)+\$?")


def detect(path: Path) -> bool:
    return path.is_dir() and (path / _CONFIG).is_file()


def read(path: Path) -> Adapter:
    """Opens a folder; FormatError if it is damaged or more than a plain LoRA."""
    config = read_json(path / _CONFIG)
    _check_plain(config)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise config.error("r", f"is {rank!r}, not a rank")
    alphas = _pattern(config, "alpha_pattern")
    ranks = _pattern(config, "rank_pattern")
    _check_number(config, "lora_alpha", alpha)
    rooted = config.get("use_rslora")
    if rooted not in (None, False, True):
        raise config.error("use_rslora", f"is {rooted!r}, not true or false")
    weights = _weights_file(path)
    tensors = (
        read_safetensors(weights)[0] if weights.suffix == ".safetensors" else read_pickled(weights)
    )
    modules: dict[str, str] = {}
    halves: dict[tuple[str, str], Half] = {}
    for field, tensor in tensors.items():
        if field.endswith(_BASE):
            continue
        embedding = _EMBEDDING.fullmatch(field)
        match = embedding or _MATRIX.fullmatch(field)
        if match is None:
            raise Half(tensor, field).error(weights, "is no half of a low-rank pair: not supported")
        module, side = match[1], match[2].lower()
        name = names.HUGGINGFACE.canonical(f"{module}.weight") or module
        if embedding:
            # A lookup takes columns of A (rank, vocabulary) through B (width, rank).
            side = "b" if side == "a" else "a"
            tensor = transposed(tensor)
        if (name, side) in halves:
            raise Half(tensor, field).error(weights, "is in the file twice")
        modules[name] = module
        halves[name, side] = Half(tensor, field)

    def scale(name: str, actual: int) -> float:
        module = modules[name]
        expected = _lookup(ranks, module, rank)
        if actual != expected:
            problem = f"has rank {actual}, {_CONFIG} says {expected}"
            raise halves[name, "a"].error(weights, problem)
        return float(_lookup(alphas, module, alpha) / (math.sqrt(actual) if rooted else actual))

    return Adapter(NAME, path, paired(weights, halves, scale))


def write_into(
    folder: Path,
    pairs: Mapping[str, Mapping[str, LazyTensor]],
    *,
    rank: int,
    alpha: float,
) -> None:
    """Fills an existing folder with the pairs {name of a weight: {"a": (rank, I), "b": (O, rank)}},
    rotary pairs of rows half-split; PEFT loads it."""
    tensors = {}
    for name, pair in pairs.items():
        for side, tensor in pair.items():
            tensors[f"{_PREFIX}{_module(name)}.lora_{side.upper()}.weight"] = tensor
    with open(folder / "adapter_model.safetensors", "xb") as file:
        write_safetensors(file, tensors, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({_module(name).rpartition(".")[2] for name in pairs}),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def in_network(field: str) -> str | None:
    """What a network in training calls a tensor of the file: `layers.0.attention.wq.lora_a`."""
    match = _MATRIX.fullmatch(field)
    name = match and names.HUGGINGFACE.canonical(f"{match[1]}.weight")
    return f"{name.removesuffix('.weight')}.lora_{match[2].lower()}" if match and name else None


def _module(name: str) -> str:
    """A weight's module as Hugging Face calls it."""
    return names.HUGGINGFACE.foreign(name).removesuffix(".weight")


def _check_plain(config: JsonObject) -> None:
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            raise config.error(key, f"is {config[key]!r}, which is not supported")
    start = config.text("init_lora_weights")
    if start.lower().startswith(_CHANGED_BASE):
        raise config.error(
            "init_lora_weights",
            f"{start!r} changed the base weights too; save the adapter converted to a plain LoRA",
        )


def _weights_file(path: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (path / name).is_file():
            return path / name
    raise FormatError(path, "adapter_model.safetensors", 0, "is not there, nor adapter_model.bin")


def _check_number(config: JsonObject, key: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < _MAX_NUMBER:
        raise config.error(key, f"{value!r} is no plausible number")


def _pattern(config: JsonObject, key: str) -> dict[str, Any]:
    """{name of modules: number}; PEFT takes regular expressions, of which plain names are read."""
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict):
        raise config.error(key, "is not an object")
    for name, value in pattern.items():
        if not _PATTERN.fullmatch(name):
            raise config.error(
                key, f"{name!r} is a regular expression; only names of modules are supported"
            )
        _check_number(config, key, value)
    return pattern


def _lookup(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first name that is the module's, or the end of it behind a dot."""
    for key, value in pattern.items():
        name = key.removesuffix("$").replace("\\.", ".")
        if name.startswith("^"):
            if name[1:] == module:
                return value
        elif f".{module}".endswith(f".{name}"):
            return value
    return default
