"""Activation checkpointing (arXiv 1604.06174): what the backward pass computes anew, not keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

RECOMPUTE = ("none", "selective", "full")

_ATEN = torch.ops.aten
# Selective keeps what is expensive, products and attention (arXiv 2205.05198), not what is quick.
_KEPT = frozenset(
    (
        _ATEN.mm.default,
        _ATEN.linear.default,
        _ATEN._scaled_mm.default,  # float8's
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
        torch.ops._c10d_functional.reduce_scatter_tensor.default,
    )
)


def recompute(blocks: list[nn.Module], kind: str) -> None:
    """Makes blocks keep their inputs and recompute ("full"), or keep their products too
    ("selective"), or everything ("none")."""
    if kind == "none":
        return
    options: dict[str, Any] = {}
    if kind == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks:
        # The method, not the module: names of weights stay what they are.
        forward: Callable[..., Any] = block.forward
        block.forward = functools.partial(
            checkpoint, forward, use_reentrant=False, preserve_rng_state=False, **options
        )


def _policy(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    kept = operator in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
