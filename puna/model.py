"""The Llama network, once: one device, no batching policy, no cache, no sharding.

`Llama.forward(tokens, positions, attend)` gives hidden states; a head from `heads.py` makes of the
rows that the caller needs what it needs. Attention is passed in (`attention.py`). Weights carry
Meta's names; rotary pairs are in the half-split layout.

Shapes: B batch, T tokens, D model width (inside attention: head width), H heads, K key/value heads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.attention import Attend
from puna.config import ModelConfig


def widened(x: Tensor) -> Tensor:
    """At least fp32, as Meta's reference computes norms and rotations; fp64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32 as Meta's reference does (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        x_float = widened(x)
        scale = torch.rsqrt(x_float.square().mean(-1, keepdim=True) + self.eps)
        return (x_float * scale).type_as(x) * self.weight.to(x.dtype)


def rotary_table(positions_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, T, 1, D), fp32, of the rotary embedding (arXiv 2104.09864)."""
    exponents = torch.arange(0, head_dim, 2, device=positions_BT.device).float() / head_dim
    angles = positions_BT[..., None].float() * (1.0 / theta**exponents)
    angles_BT1D = torch.cat((angles, angles), dim=-1).unsqueeze(-2)
    return angles_BT1D.cos(), angles_BT1D.sin()


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + D/2) of each head by their position's angle."""
    x_float = widened(x_BTHD)
    low, high = x_float.chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    return (x_float * cos + turned * sin).type_as(x_BTHD)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) around the caller's `attend`."""

    def __init__(self, layer: int, config: ModelConfig) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        # -1 heads, never a number: a tensor-parallel rank holds only its share of them.
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHD = rotate(self.wq(x_BTD).view(heads), cos, sin)
        k_BTKD = rotate(self.wk(x_BTD).view(heads), cos, sin)
        v_BTKD = self.wv(x_BTD).view(heads)
        return self.wo(attend(self.layer, q_BTHD, k_BTKD, v_BTKD).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One layer: attention and feed-forward, each normalised before and added after."""

    def __init__(self, layer: int, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(layer, config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        h_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos, sin, attend)
        return h_BTD + self.feed_forward(self.ffn_norm(h_BTD))


class Llama(nn.Module):
    """The decoder of Llama 1 and 2. Weights are uninitialised: load them or `initialize` them.

    `output` is the next-token head's weight, None where it is tied to `tok_embeddings`; `forward`
    does not apply it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(
            config.vocab_size, config.dim, _weight=torch.empty(config.vocab_size, config.dim)
        )
        # A ModuleDict, so that a pipeline stage can drop the blocks of other stages by name.
        self.layers = nn.ModuleDict({str(i): Block(i, config) for i in range(config.num_layers)})
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend) -> Tensor:
        """Token ids and positions (both B, T, int64) -> normalised hidden states (B, T, D)."""
        h_BTD = self.tok_embeddings(tokens_BT)
        cos, sin = rotary_table(positions_BT, self.config.head_dim, self.config.rope_theta)
        for block in self.layers.values():
            h_BTD = block(h_BTD, cos, sin, attend)
        return self.norm(h_BTD)


def empty(config: ModelConfig) -> Llama:
    """The network on the `meta` device: shapes and no memory."""
    with torch.device("meta"):
        return Llama(config)


def initialize(model: Llama, generator: torch.Generator) -> None:
    """Draws the weights, in place, as `drawn` does."""
    with torch.no_grad():
        for weight, (_, value) in zip(
            model.parameters(), drawn(model.config, generator), strict=True
        ):
            weight.copy_(value)


def drawn(config: ModelConfig, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """First weights, one at a time with their names: normal with deviation 0.02, norms 1.

    The paper does not give Llama's initialisation; 0.02 is the released configs'
    `initializer_range`. *Ours*: the two projections that write into the residual stream are scaled
    by 1/sqrt(2 * num_layers), as GPT-2 does, so that its variance does not grow with depth.
    """
    residual_scale = (2 * config.num_layers) ** -0.5
    for name, shape in config.tensor_shapes().items():
        weight = torch.ones(shape)
        if weight.ndim > 1:
            scale = residual_scale if name.endswith(("wo.weight", "w2.weight")) else 1.0
            weight.normal_(0.0, 0.02 * scale, generator=generator)
        yield name, weight
