"""Collectives that gradients flow through."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Parts of a dimension -> all of it; gradients are summed over ranks, each gets its part's."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        front = part.movedim(dim, 0).contiguous()
        whole = front.new_empty((front.shape[0] * group.size(), *front.shape[1:]))
        dist.all_gather_into_tensor(whole, front, group=group)
        return whole.movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        front = grad.movedim(ctx.dim, 0).contiguous()
        part = front.new_empty((front.shape[0] // ctx.group.size(), *front.shape[1:]))
        dist.reduce_scatter_tensor(part, front, group=ctx.group)
        return part.movedim(0, ctx.dim), None, None


def gather(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Joins the ranks' equal parts of dimension `dim`, in the order of ranks."""
    return _Gather.apply(part, dim, group)
