"""Meta's own layout: a folder of `params.json`, `consolidated.NN.pth` and `tokenizer.model`.

Shards are the tensor-parallel parts of one model (facebookresearch/llama, llama/model.py): a
column-parallel matrix is cut along its rows (axis 0), a row-parallel one along its columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from puna.config import ConfigError, ModelConfig, ffn_dim
from puna.formats import rotary
from puna.formats.checkpoint import Checkpoint, LazyTensor, derived
from puna.formats.errors import FormatError
from puna.formats.files import atomic_directory
from puna.formats.json_text import JsonObject, read_json
from puna.formats.pickled import read_pickled, write_pickled
from puna.formats.vocabularies import beside, load_vocabulary
from puna.quantize.block_type import Bytes
from puna.quantize.storage import STORAGE
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import write_model

NAME = "meta"

# Part of a tensor's name -> the axis that shards cut; what is not here is whole in each shard.
_AXES = {
    "tok_embeddings": 1, "wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0,
}  # fmt: skip
_IGNORED = "rope.freqs"  # a table that the code computes anew
_SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
_MAX_SHARDS = 100
_MAX_INTEGER = 1 << 24

# Field of ModelConfig -> its key; the feed-forward width follows from two others.
_KEYS = {
    "dim": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "num_kv_heads": "n_kv_heads",
    "ffn_dim": "multiple_of",
    "vocab_size": "vocab_size",
    "context_length": "max_seq_len",
    "norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
}
# params.json's keys and, for those that may be left out, Meta's defaults.
_REQUIRED = ("dim", "n_heads", "n_layers")
_INTEGERS = (*_REQUIRED, "n_kv_heads", "multiple_of", "vocab_size", "max_seq_len")
_DEFAULTS: dict[str, Any] = {
    "n_kv_heads": None,  # as many as n_heads
    "multiple_of": 256,
    "ffn_dim_multiplier": None,
    "vocab_size": -1,  # the rows of the embedding
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_seq_len": None,
}


def detect(path: Path) -> bool:
    return (path / "params.json").is_file() and any(path.glob("consolidated.*.pth"))


def read(path: Path) -> Checkpoint:
    """Opens a folder; FormatError if it is damaged, incomplete or not a Llama 1 or 2."""
    given = read_json(path / "params.json")
    params = _complete(given)
    tensors = _read_shards(path)
    notes = []
    context_length = params["max_seq_len"]
    if context_length is None:
        context_length = _assumed_context(params["norm_eps"])
        notes.append(f"context length {context_length} assumed: params.json does not say")
    embedding = tensors.get("tok_embeddings.weight")
    if embedding is None or embedding.shape[-1] != params["dim"]:
        where, at = (embedding.place if embedding else None) or (path, 0)
        problem = (
            f"the shards' parts of it do not add up to dim {params['dim']}; is a shard missing?"
        )
        raise FormatError(where, "tok_embeddings.weight", at, problem)
    vocab_size = embedding.shape[0] if params["vocab_size"] == -1 else params["vocab_size"]
    width = ffn_dim(
        params["dim"], multiple_of=params["multiple_of"], multiplier=params["ffn_dim_multiplier"]
    )
    try:
        config = ModelConfig(
            dim=params["dim"],
            num_layers=params["n_layers"],
            num_heads=params["n_heads"],
            num_kv_heads=params["n_kv_heads"] or params["n_heads"],
            ffn_dim=width,
            vocab_size=vocab_size,
            context_length=context_length,
            norm_eps=params["norm_eps"],
            rope_theta=params["rope_theta"],
            tied="output.weight" not in tensors,
        )
    except ConfigError as error:
        raise given.error(_KEYS[error.field], str(error)) from None
    return Checkpoint(
        format=NAME,
        path=path,
        config=config,
        tensors=rotary.half_split(tensors, config),
        load_vocabulary=lambda: _load_vocabulary(path),
        notes=tuple(notes),
    )


def _assumed_context(norm_eps: float) -> int:
    """Llama 2's, or that of LLaMA 1, of which all but the larger models have their own epsilon."""
    return 2048 if norm_eps == 1e-6 else 4096


def _complete(given: JsonObject) -> dict[str, Any]:
    """params.json with defaults filled in; FormatError unless each value is of its kind."""
    if unknown := sorted(set(given) - set(_DEFAULTS) - set(_REQUIRED)):
        raise given.error(unknown[0], f"unknown keys {unknown}; is the file newer than Llama 2?")
    if missing := [key for key in _REQUIRED if key not in given]:
        raise given.error(missing[0], f"the file lacks {missing}")
    params = _DEFAULTS | given
    for key, value in params.items():
        if value is None and _DEFAULTS.get(key, 0) is None:
            continue
        if key == "vocab_size" and value == -1:
            continue
        kinds = int if key in _INTEGERS else (int, float)
        right = isinstance(value, kinds) and not isinstance(value, bool)
        if not right or not 0 < value <= _MAX_INTEGER:
            raise given.error(key, f"{key} = {value!r} is not plausible")
    return params


def _load_vocabulary(path: Path) -> Vocabulary | None:
    """The tokenizer in the folder or, as in Meta's download, next to it."""
    vocabulary = beside(path)
    shared = path.absolute().parent / "tokenizer.model"
    if vocabulary is None and shared.is_file():
        return load_vocabulary(shared)
    return vocabulary


def _read_shards(path: Path) -> dict[str, LazyTensor]:
    """All shards of a folder, joined lazily."""
    numbers = {int(m[1]) for file in path.iterdir() if (m := _SHARD.fullmatch(file.name))}
    for number in range(max(numbers, default=0)):
        if number not in numbers:
            raise FormatError(
                path, f"consolidated.{number:02}.pth", 0, "the folder lacks this shard"
            )
    shards = [read_pickled(path / f"consolidated.{n:02}.pth") for n in sorted(numbers)]
    if not shards:
        raise FormatError(path, "consolidated.00.pth", 0, "the folder lacks it")
    for number, shard in enumerate(shards):
        shard.pop(_IGNORED, None)
        if odd := sorted(set(shard) ^ set(shards[0])):
            where, at = (shard | shards[0])[odd[0]].place or (path, 0)
            problem = f"it is not in both shard 00 and shard {number:02}"
            raise FormatError(where, odd[0], at, problem)
    return {name: _joined(path, name, [shard[name] for shard in shards]) for name in shards[0]}


def _joined(path: Path, name: str, parts: list[LazyTensor]) -> LazyTensor:
    """One tensor of its parts in every shard, which are equal in shape and type."""
    first = parts[0]
    axis = _AXES.get(name.removesuffix(".weight").rpartition(".")[2])
    if axis is None or len(parts) == 1:
        return first
    alike = all((part.shape, part.dtype) == (first.shape, first.dtype) for part in parts)
    if len(first.shape) != 2 or not alike:
        where, at = first.place or (path, 0)
        raise FormatError(where, name, at, "the shards' parts of it do not fit together")
    shape = list(first.shape)
    shape[axis] *= len(parts)

    def join() -> Bytes:
        # Stored rows are bytes, which join along either axis as the numbers in them do.
        return np.concatenate([part.read() for part in parts], axis=axis)

    origin = derived(f"joined along {axis}", *(part.origin for part in parts))
    return LazyTensor(tuple(shape), first.dtype, join, place=first.place, origin=origin)


def write(
    checkpoint: Checkpoint,
    path: Path,
    *,
    overwrite: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
    num_shards: int = 1,
) -> None:
    """Writes a folder that Meta's code loads on `num_shards` GPUs; a tied head as a copy."""
    config = checkpoint.config
    divided = {
        "heads": config.num_heads,
        "key/value heads": config.num_kv_heads,
        "feed-forward units": config.ffn_dim,
        "vocabulary entries": config.vocab_size,
    }
    if not 1 <= num_shards <= _MAX_SHARDS:
        raise ValueError(f"{num_shards} shards: give 1 to {_MAX_SHARDS}")
    for what, count in divided.items():
        if count % num_shards:
            raise ValueError(f"{count} {what} do not divide into {num_shards} shards")
    tensors = rotary.interleaved(checkpoint.tensors, config)
    known = tuple(tensors)
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"])
    with atomic_directory(path, overwrite=overwrite) as folder:
        for number in range(num_shards):
            shard = {name: _part(name, t, number, num_shards) for name, t in tensors.items()}
            if number == num_shards - 1:  # a tensor is done when the last shard has its part
                shard |= {name: shard[name].watched(on_tensor, name) for name in known}
            with open(folder / f"consolidated.{number:02}.pth", "xb") as file:
                write_pickled(file, shard)
        text = json.dumps(_params(config), indent=2) + "\n"
        (folder / "params.json").write_text(text, encoding="utf-8")
        if checkpoint.vocabulary is not None:
            (folder / "tokenizer.model").write_bytes(write_model(checkpoint.vocabulary))


def _part(name: str, tensor: LazyTensor, number: int, num_shards: int) -> LazyTensor:
    """Shard `number`'s part of a tensor."""
    axis = _AXES.get(name.removesuffix(".weight").rpartition(".")[2])
    # Blocks would straddle the cut; `write_pickled` refuses them.
    if axis is None or num_shards == 1 or STORAGE[tensor.dtype].block_size > 1:
        return tensor
    shape = list(tensor.shape)
    shape[axis] //= num_shards

    def cut() -> Bytes:
        return np.split(tensor.read(), num_shards, axis=axis)[number]

    return LazyTensor(tuple(shape), tensor.dtype, cut)


def _params(config: ModelConfig) -> Mapping[str, Any]:
    multiple_of, multiplier = ffn_parameters(config.dim, config.ffn_dim)
    params: dict[str, Any] = {
        "dim": config.dim,
        "multiple_of": multiple_of,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "n_layers": config.num_layers,
        "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
    }
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    if config.rope_theta != 10000:
        params["rope_theta"] = config.rope_theta
    if config.context_length != _assumed_context(config.norm_eps):
        params["max_seq_len"] = config.context_length
    return params


def ffn_parameters(dim: int, width: int) -> tuple[int, float | None]:
    """`multiple_of` and `ffn_dim_multiplier` with which `config.ffn_dim` gives `width`."""
    multiples = [256, *(1 << power for power in range(12, -1, -1))]
    ratio = width / ffn_dim(dim, multiple_of=1)
    # The roundest multiplier, if one is needed at all; half a unit more survives truncation.
    exact = (width + 0.5) / ffn_dim(dim, multiple_of=1)
    for multiplier in (None, *(round(ratio, digits) for digits in range(1, 5)), exact):
        for multiple_of in multiples:
            if ffn_dim(dim, multiple_of=multiple_of, multiplier=multiplier) == width:
                return multiple_of, multiplier
    raise ValueError(f"no params.json can say that dim {dim} has a feed-forward width of {width}")
