"""Canonical (Meta's) tensor names <-> other formats' names."""

from __future__ import annotations

import re

from puna.config import HEADS

_HUGGINGFACE_OUTER = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    # `score` is LlamaForSequenceClassification's own; the others are ours.
    **{f"{head}.weight": f"{head}.weight" for head in HEADS},
}
_HUGGINGFACE_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_GGUF_OUTER = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
}
_GGUF_BLOCK = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


class NameMap:
    """One format's names: `foreign(canonical)` and back; None for a name the format has not."""

    def __init__(self, outer: dict[str, str], block: dict[str, str], layer_prefix: str) -> None:
        self._outer, self._block, self._prefix = outer, block, layer_prefix
        self._outer_back = {theirs: ours for ours, theirs in outer.items()}
        self._block_back = {theirs: ours for ours, theirs in block.items()}
        self._pattern = re.compile(re.escape(layer_prefix) + r"(\d{1,4})\.(.+)\.weight")

    def foreign(self, canonical: str) -> str:
        if canonical in self._outer:
            return self._outer[canonical]
        _, layer, rest = canonical.split(".", 2)
        return f"{self._prefix}{layer}.{self._block[rest.removesuffix('.weight')]}.weight"

    def canonical(self, foreign: str) -> str | None:
        if foreign in self._outer_back:
            return self._outer_back[foreign]
        match = self._pattern.fullmatch(foreign)
        if match is None or match[2] not in self._block_back:
            return None
        return f"layers.{int(match[1])}.{self._block_back[match[2]]}.weight"


HUGGINGFACE = NameMap(_HUGGINGFACE_OUTER, _HUGGINGFACE_BLOCK, "model.layers.")
GGUF = NameMap(_GGUF_OUTER, _GGUF_BLOCK, "blk.")
