"""Collectives that gradients flow through."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 gave them new names, and warns of the old ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Gather(torch.autograd.Function):
    """Parts of a dimension -> all of it; gradients are summed over ranks, each gets its part's."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return torch.cat(parts_of_all(part, group), dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        parts = torch.cat(grad.chunk(ctx.group.size(), ctx.dim))
        part = torch.empty_like(parts.chunk(ctx.group.size())[0])
        _reduce_scatter(part, parts, group=ctx.group)
        return part, None, None


def gather(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Joins the ranks' equal parts of dimension `dim`, in the order of ranks."""
    return _Gather.apply(part, dim, group)


def parts_of_all(part: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Every rank's tensor, all of one shape; without gradients."""
    parts = part.new_empty((group.size(), *part.shape))
    _all_gather(parts.flatten(0, 1) if part.ndim else parts, part.contiguous(), group=group)
    return parts.unbind()
