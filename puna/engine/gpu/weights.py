"""Where the weights of a fused network lie: names -> the memory that steps and graphs read."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from puna.engine.gpu.fused import DenseLinear, FusedAttention, FusedFeedForward, Joined, Moved
from puna.model import Llama


def places(model: Llama) -> dict[str, Tensor]:
    """The weights that are held as numbers, by the canonical names; of joined ones, their rows.

    Those of packed layers are not among them: they cannot be exchanged.
    """
    found = {"tok_embeddings.weight": model.tok_embeddings.weight, "norm.weight": model.norm.weight}
    found |= _dense("output", model.output)
    for number, block in model.layers.items():
        inner = block.block if isinstance(block, Moved) else block
        layer = f"layers.{number}"
        attention, feed_forward = inner.attention, inner.feed_forward
        assert isinstance(attention, FusedAttention)
        assert isinstance(feed_forward, FusedFeedForward)
        for name in ("attention_norm", "ffn_norm"):
            found[f"{layer}.{name}.weight"] = getattr(inner, name).weight
        found |= _each(f"{layer}.attention", ["wq", "wk", "wv"], attention.wqkv)
        found |= _each(f"{layer}.attention", ["wo"], attention.wo)
        found |= _each(f"{layer}.feed_forward", ["w1", "w3"], feed_forward.w13)
        found |= _each(f"{layer}.feed_forward", ["w2"], feed_forward.w2)
    return found


def _each(owner: str, names: list[str], module: nn.Module) -> dict[str, Tensor]:
    """The weights of linear layers that are one module, or several."""
    if isinstance(module, Joined):
        if not isinstance(module.linear, DenseLinear):
            return {}
        parts = module.linear.weight.data.split(module.sizes)
        return {f"{owner}.{name}.weight": part for name, part in zip(names, parts, strict=True)}
    found: dict[str, Tensor] = {}
    for name, linear in zip(names, _alone(module), strict=True):
        found |= _dense(f"{owner}.{name}", linear)
    return found


def _alone(module: nn.Module) -> Iterator[nn.Module]:
    yield from getattr(module, "linears", [module])


def _dense(name: str, module: nn.Module | None) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight.data} if isinstance(module, DenseLinear) else {}
