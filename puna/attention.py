"""What the network is given as `attend`: attention over keys and values, owned by the caller.

`attend(layer, q, k, v)` gets this step's rotated queries (B, T, H, D) and keys and values
(B, T, K, D) of one layer and returns (B, T, H, D). Whether older keys exist, where they are kept
and what may look at what is the callable's business alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

_BLOCK = 128  # queries at once
_MOST_TOKENS = 1024


def sdpa(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention; causal where no `mask` (broadcast to B, H, T, S) is given."""
    out_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BSKD.transpose(1, 2),
        v_BSKD.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q_BTHD.shape[2] != k_BSKD.shape[2],
    )
    return out_BHTD.transpose(1, 2)


def causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain causal attention over the tokens of this call (pretraining)."""
    return sdpa(q, k, v)


def causal_in_blocks(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`causal`, by plain matrix products of `_BLOCK` queries and the keys up to them, where that is
    faster: bf16 on a CPU, whose fused kernel takes twice as long to train with.

    Scores are rounded to bf16. All weights are kept for the backward pass, so that it is left to
    the fused kernel where they would be many: above `_MOST_TOKENS`.
    """
    num_tokens = q.shape[1]
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or num_tokens > _MOST_TOKENS:
        return causal(layer, q, k, v)
    q_BHTD = q.transpose(1, 2) * q.shape[-1] ** -0.5
    groups = q.shape[2] // k.shape[2]
    k_BHTD, v_BHTD = (x.repeat_interleave(groups, dim=2).transpose(1, 2) for x in (k, v))
    hidden = ~causal_mask(num_tokens, q.device)
    blocks = []
    for first in range(0, num_tokens, _BLOCK):
        last = min(first + _BLOCK, num_tokens)
        scores = q_BHTD[:, :, first:last] @ k_BHTD[:, :, :last].transpose(-1, -2)
        scores = scores.masked_fill(hidden[:, :, first:last, :last], -torch.inf)
        blocks.append(scores.softmax(-1) @ v_BHTD[:, :, :last])
    return torch.cat(blocks, dim=2).transpose(1, 2)


def masked(mask: Tensor) -> Attend:
    """Attention by a mask, true where a query (B, 1, T, .) may look at a key (., S)."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, mask=mask)

    return attend


def causal_mask(num_tokens: int, device: torch.device) -> Tensor:
    """What plain causal attention sees, as a mask (1, 1, T, T)."""
    return torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool, device=device).tril()


def document_mask(documents_BT: Tensor) -> Tensor:
    """Causal inside a document, `documents_BT` numbers each token's; a mask (B, 1, T, T)."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT[:, None] & causal_mask(documents_BT.shape[1], documents_BT.device)


def document_masked(documents_BT: Tensor) -> Attend:
    """Causal attention that stays inside a document: `documents_BT` numbers each token's."""
    return masked(document_mask(documents_BT))
