"""A Llama in float64, written plainly, on a Hugging Face folder: who of two in float32 is off?

The angles of positions alone are in float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


class Float64:
    """The model of a folder with one file of weights."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.double() for name, tensor in weights.items()}

    def logprob(self, context: Sequence[int], ending: Sequence[int]) -> float:
        """The log-likelihood of the ending's ids after those of the context."""
        ids = torch.tensor([*context, *ending])
        logits = self.logits(ids[:-1])[-len(ending) :]
        picked = ids[-len(ending) :, None]
        return float(torch.log_softmax(logits, -1).gather(1, picked).sum())

    def logits(self, ids: Tensor) -> Tensor:
        """(T) -> (T, V)."""
        config, weights = self.config, self.weights
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        width = config["hidden_size"] // heads
        # In float32, as Meta's code has them; what they round off is the model's, and no error.
        frequencies = 1 / config["rope_theta"] ** (torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(len(ids)), frequencies).double()
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        unseen = torch.ones(len(ids), len(ids)).triu(1).bool()

        def norm(x: Tensor, name: str) -> Tensor:
            mean = x.square().mean(-1, keepdim=True)
            return x / (mean + config["rms_norm_eps"]).sqrt() * weights[f"model.{name}.weight"]

        def rotated(x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

        x = weights["model.embed_tokens.weight"][ids]
        for layer in range(config["num_hidden_layers"]):

            def linear(x: Tensor, name: str, layer: int = layer) -> Tensor:
                return x @ weights[f"model.layers.{layer}.{name}_proj.weight"].T

            h = norm(x, f"layers.{layer}.input_layernorm")
            q, k, v = (linear(h, f"self_attn.{n}").unflatten(1, (-1, width)) for n in "qkv")
            k, v = (each.repeat_interleave(heads // kv_heads, 1) for each in (rotated(k), v))
            scores = torch.einsum("qhd,khd->hqk", rotated(q), k) / width**0.5
            shares = scores.masked_fill(unseen, -torch.inf).softmax(-1)
            x = x + linear(torch.einsum("hqk,khd->qhd", shares, v).flatten(1), "self_attn.o")
            h = norm(x, f"layers.{layer}.post_attention_layernorm")
            gate = torch.nn.functional.silu(linear(h, "mlp.gate"))
            x = x + linear(gate * linear(h, "mlp.up"), "mlp.down")
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        return norm(x, "norm") @ head.T
