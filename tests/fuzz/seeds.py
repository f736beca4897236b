"""Whole models in every format, for the fuzzer to damage: small, with all that files can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from puna.formats import FORMATS, gguf, huggingface, meta, save_checkpoint
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.names import GGUF, HUGGINGFACE
from puna.formats.pickled import write_pickled
from puna.quantize.storage import STORAGE
from puna.tokenizer.llama2c import write_bin
from tests.formats import test_llama2c, test_sharded
from tests.formats.conftest import make_checkpoint, make_vocabulary

_K_TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
_OTHER_TYPES = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def mixed(types: tuple[str, ...], dim: int) -> Checkpoint:
    """A checkpoint whose matrices take turns in the types; any bytes are weights."""
    plain = make_checkpoint(num_layers=1, dim=dim, ffn_dim=dim)
    generator = np.random.default_rng(0)
    tensors = {}
    for number, (name, tensor) in enumerate(plain.tensors.items()):
        dtype = types[number % len(types)] if len(tensor.shape) == 2 else "f32"
        shape = STORAGE[dtype].stored_shape(tensor.shape)
        raw = generator.integers(0, 256, shape, np.uint8)
        tensors[name] = LazyTensor(tensor.shape, dtype, raw.copy)
    return replace(plain, tensors=tensors)


def _gguf(folder: Path) -> Path:
    gguf.write(mixed(_OTHER_TYPES, 64), folder / "model.gguf", file_type="q4_0")
    return folder / "model.gguf"


def _gguf_k(folder: Path) -> Path:
    gguf.write(mixed(_K_TYPES, 256), folder / "model.gguf", file_type="q4_k_m")
    return folder / "model.gguf"


def _gguf_split(folder: Path) -> Path:
    checkpoint = make_checkpoint("f16", num_layers=1)
    metadata = gguf._metadata(checkpoint)
    names = list(checkpoint.tensors)
    for number, part in enumerate((names[:4], names[4:])):
        split = {"split.no": number, "split.count": 2, "split.tensors.count": len(names)}
        tensors = {GGUF.foreign(name): checkpoint.tensors[name] for name in part}
        with open(folder / f"model-{number + 1:05}-of-00002.gguf", "wb") as file:
            gguf.write_gguf(file, split | metadata if number == 0 else split, tensors)
    return folder / "model-00002-of-00002.gguf"


def _huggingface(folder: Path) -> Path:
    huggingface.write(make_checkpoint("bf16", num_layers=1), folder / "model")
    return folder / "model"


def _huggingface_shards(folder: Path) -> Path:
    checkpoint = make_checkpoint("f16", num_layers=1, tied=True)
    huggingface.write(checkpoint, folder / "model", max_shard_bytes=40_000)
    (folder / "model" / "tokenizer.model").unlink()  # so that tokenizer.json is read
    return folder / "model"


def _huggingface_pickled(folder: Path) -> Path:
    checkpoint = make_checkpoint("f16", num_layers=1)
    huggingface.write(checkpoint, folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    with open(folder / "model" / "pytorch_model.bin", "wb") as file:
        write_pickled(
            file, {HUGGINGFACE.foreign(name): t for name, t in checkpoint.tensors.items()}
        )
    return folder / "model"


def _meta(folder: Path) -> Path:
    meta.write(make_checkpoint("f16", num_layers=1), folder / "model", num_shards=2)
    return folder / "model"


def _llama2c(version: int) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        checkpoint = make_checkpoint(tied=version == 1)
        (folder / "model.bin").write_bytes(test_llama2c.BY_VERSION[version](checkpoint))
        (folder / "tokenizer.bin").write_bytes(write_bin(make_vocabulary()))
        return folder / "model.bin"

    return build


def _ggml(folder: Path) -> Path:
    types = tuple(name for name in _OTHER_TYPES if name != "bf16")
    save_checkpoint(mixed(types, 64), folder / "model.bin", "ggml")
    return folder / "model.bin"


def _gptq(act_order: bool) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        checkpoint = make_checkpoint("f16", num_layers=1)
        save_checkpoint(checkpoint, folder / "model", "gptq", bits=4, group_size=32)
        settings = folder / "model" / "quantize_config.json"
        values = json.loads(settings.read_text())
        settings.write_text(json.dumps(values | {"desc_act": act_order}))
        return folder / "model"

    return build


def _sharded(folder: Path) -> Path:
    return test_sharded.write_sharded(folder / "model", make_checkpoint(num_layers=1))


# Builders: each fills an empty folder and gives the path that opens.
SEEDS: dict[str, Callable[[Path], Path]] = {
    "gguf": _gguf,
    "gguf-k": _gguf_k,
    "gguf-split": _gguf_split,
    "huggingface": _huggingface,
    "huggingface-shards": _huggingface_shards,
    "huggingface-pickled": _huggingface_pickled,
    "meta": _meta,
    "llama2c-v0": _llama2c(0),
    "llama2c-v1": _llama2c(1),
    "llama2c-v2": _llama2c(2),
    "ggml": _ggml,
    "sharded": _sharded,
}
if "gptq" in FORMATS:
    SEEDS |= {"gptq": _gptq(False), "gptq-actorder": _gptq(True)}
