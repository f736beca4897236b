"""GPTQ folders: a Hugging Face folder whose linear layers are groups of integers.

AutoGPTQ's layout, which GPTQModel, transformers and vLLM read too; how it was quantized stands in
quantize_config.json or in config.json's quantization_config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from puna.formats import names
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import FormatError
from puna.formats.gptq_layer import PARTS, ZERO_POINTS, Layer, check_layer
from puna.formats.huggingface import parse_config, read_chat_template, read_shards
from puna.formats.json_text import JsonObject, read_json
from puna.formats.model_card import read_card
from puna.formats.pickled import read_stored as read_pickled
from puna.formats.safetensors_file import read_entries
from puna.formats.stored import Stored
from puna.formats.vocabularies import beside
from puna.quantize.packing import BITS

NAME = "gptq"
SETTINGS_FILE = "quantize_config.json"
SETTINGS_KEY = "quantization_config"
# checkpoint_format -> version of the zero points.
CHECKPOINT_FORMATS = {"gptq": "v1", "gptq_v2": "v2"}

_OTHER_SETTINGS = "quant_config.json"  # AutoAWQ's
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"  # a buffer that old exports carry
_PICKLES = (".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a folder says of its layers; `version` of the zero points, None where it does not."""

    bits: int
    group_size: int
    act_order: bool
    version: str | None
    file_name: str


def detect(path: Path) -> bool:
    """Whether a folder's weights are quantized, by GPTQ or another method: `read` tells which."""
    if not (path / "config.json").is_file():
        return False
    if (path / SETTINGS_FILE).is_file() or (path / _OTHER_SETTINGS).is_file():
        return True
    try:
        return bool(read_json(path / "config.json").get(SETTINGS_KEY))
    except FormatError:
        return False  # a damaged config.json is said of as any other's


def read(path: Path, zero_points: str | None = None) -> Checkpoint:
    """Opens a folder; FormatError if it is damaged, not GPTQ or not a Llama.

    `zero_points` is "v1" or "v2" where the folder is known to say it wrongly. If not given it is
    told from the data where that is symmetric, else from checkpoint_format, else v1 is assumed.
    """
    if zero_points is not None and zero_points not in ZERO_POINTS:
        raise ValueError(f"zero points are {' or '.join(ZERO_POINTS)}, not '{zero_points}'")
    config_file = read_json(path / "config.json")
    config = parse_config(config_file)
    settings = _read_settings(path, config_file)
    layers, others = _layers(_read_weights(path, settings), settings)
    if not layers:
        raise FormatError(path, "weights", 0, "no tensor is quantized: none is called *.qweight")
    notes: list[str] = []
    if zero_points is None:
        zero_points = _version(next(iter(layers.values())), settings, notes)
    tensors = {names.HUGGINGFACE.canonical(name) or name: other for name, other in others.items()}
    for stem, layer in layers.items():
        name = names.HUGGINGFACE.canonical(f"{stem}.weight") or f"{stem}.weight"
        if name in tensors:
            raise layer.parts["qweight"].error("there is a plain weight beside it")
        tensors[name] = layer.lazy(zero_points, settings.act_order)
    if any(layer.parts["scales"].dtype != "F16" for layer in layers.values()):
        notes.append("scales are rounded to float16, which GPTQ computes with")
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
        name=card.get("model_name") or config_file.text("_name_or_path"),
        license=card.get("license", ""),
        notes=tuple(notes),
    )


def _read_settings(path: Path, config_file: JsonObject) -> _Settings:
    """FormatError for what is not GPTQ in AutoGPTQ's layout."""
    inner = config_file.get(SETTINGS_KEY) or {}
    if not isinstance(inner, dict):
        raise config_file.error(SETTINGS_KEY, "it is not an object")
    values: dict[str, Any] = dict(inner)
    file = config_file
    for name in (_OTHER_SETTINGS, SETTINGS_FILE):
        if (path / name).is_file():
            file = read_json(path / name)
            values |= file

    def error(key: str, problem: str) -> FormatError:
        if key in file or file is not config_file:
            return file.error(key, problem)
        return FormatError(file.path, key, file.places.get(SETTINGS_KEY, 0), problem)

    method = values.get("quant_method", "awq" if "w_bit" in values else "gptq")
    if method != "gptq":
        raise error("quant_method", f"the weights are quantized by {method!r}; known is 'gptq'")
    if values.get("is_marlin_format"):
        raise error("is_marlin_format", "Marlin's own layout is not supported; AutoGPTQ's is")
    layout = values.get("checkpoint_format") or values.get("format")
    if layout is not None and layout not in list(CHECKPOINT_FORMATS):
        known = " and ".join(CHECKPOINT_FORMATS)
        raise error("checkpoint_format", f"the layout {layout!r} is not supported; {known} are")
    if values.get("pack_dtype", "int32") != "int32":
        raise error("pack_dtype", f"words of {values['pack_dtype']!r} are not supported, int32 are")
    bits, group_size = values.get("bits"), values.get("group_size", -1)
    if type(bits) is not int or bits not in BITS:
        raise error("bits", f"{bits!r} bits are not supported; {', '.join(map(str, BITS))} are")
    if type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise error("group_size", f"it must be a positive number or -1, not {group_size!r}")
    act_order = values.get("desc_act", False)
    if type(act_order) is not bool:
        raise error("desc_act", f"it must be true or false, not {act_order!r}")
    base_name = values.get("model_file_base_name") or ""
    if not isinstance(base_name, str) or Path(base_name).name != base_name:
        raise error("model_file_base_name", f"{base_name!r} is no name of a file in the folder")
    version = None if layout is None else CHECKPOINT_FORMATS[layout]
    return _Settings(bits, group_size, act_order, version, f"{base_name}.safetensors")


def _read_weights(path: Path, settings: _Settings) -> dict[str, Stored]:
    """All tensors of the folder, in the one file or index that it has."""
    # A folder keeps its weights under any name; those of its settings and of transformers first.
    for name in (settings.file_name, "model.safetensors"):
        if (path / name).is_file():
            return _read_file(path / name)
    for pattern in ("*.safetensors.index.json", "*.bin.index.json"):
        if index := _only(path, pattern):
            return read_shards(path, index, _read_file)
    for pattern in ("gptq_model-*.safetensors", "*.safetensors", "*.bin", "*.pt", "*.pth"):
        if file := _only(path, pattern):
            return _read_file(file)
    raise FormatError(path, "weights", 0, "the folder holds no .safetensors, .bin or .pt file")


def _only(path: Path, pattern: str) -> Path | None:
    found = sorted(path.glob(pattern))
    if len(found) > 1:
        several = ", ".join(file.name for file in found[:3])
        raise FormatError(path, "weights", 0, f"which file is meant: {several}? Leave one there")
    return found[0] if found else None


def _read_file(path: Path) -> dict[str, Stored]:
    if path.suffix in _PICKLES:
        return read_pickled(path)
    file, entries, _ = read_entries(path)
    return {
        name: Stored(
            name, entry.dtype, entry.shape, (path, entry.place),
            partial(file.read, entry.begin, entry.end, name),
            (file.identity(entry.begin, entry.end),),
        )
        for name, entry in entries.items()
    }  # fmt: skip


def _layers(
    stored: Mapping[str, Stored], settings: _Settings
) -> tuple[dict[str, Layer], dict[str, LazyTensor]]:
    """The quantized layers by the stem of their name, and the other tensors."""
    stems = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    parts: dict[str, dict[str, Stored]] = {stem: {} for stem in stems}
    others: dict[str, LazyTensor] = {}
    biases: dict[str, Stored] = {}
    for name, tensor in stored.items():
        stem, _, part = name.rpartition(".")
        if stem in parts and part in PARTS:
            parts[stem][part] = tensor
        elif stem in parts and part == "bias":
            biases[stem] = tensor
        elif not name.endswith(_IGNORED_SUFFIX):
            others[name] = tensor.lazy()
    layers = {
        stem: check_layer(of_layer, settings.bits, settings.group_size, settings.act_order)
        for stem, of_layer in parts.items()
    }
    for stem, bias in biases.items():
        if bias.shape != layers[stem].shape[:1]:
            raise bias.error(f"it has shape {bias.shape}; the outputs are {layers[stem].shape[0]}")
        # AutoGPTQ gave each layer a bias of zeros, whether the model has one or not.
        if bias.lazy().read_float32().any():
            raise bias.error("it is not zero; a Llama's layers have no bias")
    return layers, others


def _version(layer: Layer, settings: _Settings, notes: list[str]) -> str:
    """Version of the zero points: by one layer's own, which are all alike where symmetric."""
    zeros = layer.stored_zeros()
    middle = 1 << (layer.bits - 1)
    seen = {middle - 1: "v1", middle: "v2"}.get(int(zeros[0, 0]))
    if seen is not None and (zeros == zeros[0, 0]).all():
        if settings.version not in (None, seen):
            notes.append(
                f"checkpoint_format says {settings.version}, the zero points are {seen}'s; "
                "they were believed"
            )
        return seen
    if settings.version is None:
        notes.append(
            "the file does not say which version its zero points are; v1 was assumed, as "
            "AutoGPTQ's are"
        )
    return settings.version or "v1"
