"""Losses as pure functions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from puna.model import widened


def next_token_loss_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum over all tokens of -log p(target), in nats, computed in fp32 at least."""
    return F.cross_entropy(widened(logits_BTV.flatten(0, 1)), targets_BT.flatten(), reduction="sum")


def perplexity(loss: float) -> float:
    """e to a mean loss in nats; infinite where a float cannot hold it."""
    return math.inf if loss > 700 else math.exp(loss)


def chunked_next_token_loss_sum(
    hidden_BTD: Tensor,
    head_VD: Tensor,
    targets_BT: Tensor,
    *,
    chunk: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The same from hidden states and the head's weights, with the logits of `chunk` tokens at once
    (0: of all). Targets below 0 are left out.

    With `group`, each of its ranks has the same hidden states and, in their order, an equal share
    of the vocabulary's rows; all get the whole sum, and of the hidden states the gradient through
    their own rows alone: the shares of it are to be added over the group.
    """
    hidden, targets = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    return _ChunkedLoss.apply(hidden, head_VD, targets, chunk or len(hidden), group)


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, while a chunk's logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        chunk: int,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        wide = widened(hidden[:0]).dtype
        total = torch.zeros((), dtype=wide, device=hidden.device)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        hidden_grad = torch.empty_like(hidden) if wanted else None
        head_grad = torch.zeros_like(head, dtype=wide) if wanted else None
        first = 0 if group is None else group.rank() * len(head)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ head.T).to(wide)
            # Its column here, where it is of this share.
            column = targets[rows] - first
            mine = (column >= 0) & (column < len(head))
            column = column.clamp(0, len(head) - 1)[:, None]
            top = _reduced(logits.amax(-1, keepdim=True), dist.ReduceOp.MAX, group)
            chosen = logits.gather(1, column)[:, 0] * mine
            chosen = _reduced(chosen, dist.ReduceOp.SUM, group)
            logits -= top
            logits.exp_()
            sums = _reduced(logits.sum(-1, keepdim=True), dist.ReduceOp.SUM, group)
            kept = (targets[rows] >= 0).to(wide)
            total += ((sums.log() + top)[:, 0] * kept).sum() - chosen.sum()
            if hidden_grad is None or head_grad is None:
                continue
            # softmax - one at the target
            logits /= sums
            logits.scatter_add_(1, column, -mine[:, None].to(wide))
            slope = (logits * kept[:, None]).to(hidden.dtype)
            hidden_grad[rows] = slope @ head
            head_grad += slope.T @ hidden[rows]
        if hidden_grad is not None and head_grad is not None:
            ctx.save_for_backward(hidden_grad, head_grad)
            ctx.dtype = head.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, head_grad = ctx.saved_tensors
        scaled = (head_grad * grad).to(ctx.dtype)
        return (hidden_grad * grad).to(hidden_grad.dtype), scaled, None, None, None


def _reduced(x: Tensor, operation: Any, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(x, operation, group=group)
    return x
