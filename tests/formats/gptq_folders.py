"""GPTQ folders made without Puna's code: every code put into its word by a plain loop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from puna.config import ModelConfig
from puna.formats.names import HUGGINGFACE

CONFIG = ModelConfig(
    dim=128, num_layers=1, num_heads=4, num_kv_heads=2, ffn_dim=192, vocab_size=64,
    context_length=64, norm_eps=1e-5,
)  # fmt: skip


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (N, M) -> int32 (N * bits / 32, M): code n of a column begins at bit n * bits."""
    words = np.zeros((len(codes) * bits // 32, codes.shape[1]), np.uint32)
    for n, row in enumerate(codes.astype(np.uint32)):
        word, shift = divmod(n * bits, 32)
        words[word] |= row << np.uint32(shift)
        if shift + bits > 32:
            words[word + 1] |= row >> np.uint32(32 - shift)
    return words.view(np.int32)


@dataclass
class Made:
    """A layer's true codes (I, O), zeros and scales (G, O) and groups (I,)."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray

    def weight(self) -> np.ndarray:
        """(O, I) float32, a column at a time."""
        out = np.empty(self.codes.T.shape, np.float32)
        for i, g in enumerate(self.groups):
            centred = self.codes[i].astype(np.int64) - self.zeros[g].astype(np.int64)
            out[:, i] = (self.scales[g].astype(np.float64) * centred).astype(np.float32)
        return out

    def parts(self, bits: int, version: str) -> dict[str, np.ndarray]:
        stored = (self.zeros.astype(np.int64) - (version == "v1")) % 2**bits
        return {
            "qweight": pack_rows(self.codes, bits),
            "qzeros": np.ascontiguousarray(pack_rows(stored.T, bits).T),
            "scales": self.scales,
            "g_idx": self.groups.astype(np.int32),
        }


def make_layer(
    outputs: int, inputs: int, bits: int, group_size: int, symmetric: bool, act_order: bool,
    seed: int = 0,
) -> Made:  # fmt: skip
    generator = np.random.default_rng(seed)
    size = inputs if group_size == -1 else group_size
    count = -(-inputs // size)
    groups = np.arange(inputs) // size
    zeros = generator.integers(0, 2**bits, (count, outputs))
    if symmetric:
        zeros = np.full_like(zeros, 2 ** (bits - 1))
    else:
        zeros[0, :2] = 0, 2**bits - 1  # v1 stores the first as the largest code
    return Made(
        codes=generator.integers(0, 2**bits, (inputs, outputs)),
        zeros=zeros,
        scales=(generator.uniform(0.1, 0.5, (count, outputs)) / 2**bits).astype(np.float16),
        groups=generator.permutation(groups) if act_order else groups,
    )


def make_folder(
    folder: Path, *, bits: int = 4, group_size: int = 32, symmetric: bool = True,
    act_order: bool = False, version: str = "v1", settings: dict[str, Any] | None = None,
    file_name: str = "model.safetensors", extra: dict[str, np.ndarray] | None = None,
    drop: str = "", config: ModelConfig = CONFIG,
) -> tuple[dict[str, Made], dict[str, np.ndarray]]:  # fmt: skip
    """Writes a folder; the layers that it holds and the tensors of its file.

    `settings` replaces keys of quantize_config.json (None as a value removes one), `extra` adds or
    replaces tensors, `drop` leaves out those whose name ends so.
    """
    folder.mkdir(exist_ok=True)
    layers: dict[str, Made] = {}
    tensors: dict[str, np.ndarray] = {}
    generator = np.random.default_rng(9)
    for seed, (name, shape) in enumerate(config.tensor_shapes().items()):
        foreign = HUGGINGFACE.foreign(name)
        if len(shape) == 2 and name.startswith("layers."):
            layers[name] = make_layer(*shape, bits, group_size, symmetric, act_order, seed)
            stem = foreign.removesuffix("weight")
            parts = layers[name].parts(bits, version)
            tensors |= {stem + part: array for part, array in parts.items()}
        else:
            tensors[foreign] = generator.standard_normal(shape).astype(np.float16)
    tensors |= extra or {}
    tensors = {name: array for name, array in tensors.items() if not (drop and name.endswith(drop))}
    safetensors.numpy.save_file(tensors, folder / file_name, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_values(config)))
    values = {"bits": bits, "group_size": group_size, "desc_act": act_order, "sym": symmetric}
    values |= settings or {}
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "quantize_config.json").write_text(json.dumps(values))
    return layers, tensors


def config_values(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size, "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps, "torch_dtype": "float16",
    }  # fmt: skip
