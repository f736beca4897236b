"""A network's blocks, rewritten for decoding on a GPU: fewer launches, the same numbers.

Matrices that read the same input become one, where they are of one kind. A layer holds its own
pages, which it hands to `attend` in place of its number: so all layers are the same code, which is
compiled once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.kernels.ops import dense_linear, paged_attention
from puna.kernels.paged import Rows
from puna.model import Attention, Block, FeedForward, Llama, rotate
from puna.parallel.tensor import Sharded, num_outputs
from puna.quantize.linear import QuantizedLinear


class Pages(NamedTuple):
    """A layer's keys and values, each (pages, page_size, K, D)."""

    keys: Tensor
    values: Tensor


class DenseLinear(nn.Module):
    """`nn.Linear` without bias, whose single rows take the kernel for them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return dense_linear(x, self.weight)


class Joined(nn.Module):
    """Several linear layers of one input, as one matrix."""

    def __init__(self, linear: nn.Module, sizes: list[int]) -> None:
        super().__init__()
        self.linear, self.sizes = linear, sizes

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.linear(x).split(self.sizes, dim=-1)


class Separate(nn.Module):
    """Several linear layers of one input that are of different kinds."""

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(linear(x) for linear in self.linears)


def joined(linears: Sequence[nn.Module]) -> nn.Module:
    """One module that gives the outputs of all `linears`, as a tuple."""
    if all(isinstance(linear, nn.Linear) for linear in linears):
        weights = [cast(Tensor, linear.weight) for linear in linears]
        return Joined(DenseLinear(torch.cat(weights)), [len(weight) for weight in weights])
    quantized = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
    if len(quantized) < len(linears) or not _alike(quantized):
        return Separate([plain(linear) for linear in linears])
    first = quantized[0]
    tensors = {
        name: tensor if name == "order" else torch.cat([x.get_buffer(name) for x in quantized])
        for name, tensor in first.named_buffers()
    }
    linear = QuantizedLinear(first.scheme, tensors, first.group_size)
    return Joined(linear, [x.out_features for x in quantized])


def _alike(linears: Sequence[QuantizedLinear]) -> bool:
    """Whether rows of all can lie in one matrix: the same packing, and order of inputs."""
    first = linears[0]
    order = dict(first.named_buffers()).get("order")
    for linear in linears[1:]:
        other = dict(linear.named_buffers()).get("order")
        if (linear.scheme, linear.group_size) != (first.scheme, first.group_size):
            return False
        if (order is None) != (other is None):
            return False
        if order is not None and other is not None and not torch.equal(order, other):
            return False
    return True


def plain(linear: nn.Module) -> nn.Module:
    """A linear layer alone."""
    if isinstance(linear, Sharded):
        linear.linear = plain(linear.linear)
    return DenseLinear(linear.weight.data) if isinstance(linear, nn.Linear) else linear


class FusedAttention(nn.Module):
    """`model.Attention` with one matrix for queries, keys and values, and pages of its own."""

    def __init__(self, attention: Attention, num_pages: int, page_size: int, dtype: torch.dtype):
        super().__init__()
        self.head_dim = attention.head_dim
        self.wqkv = joined([attention.wq, attention.wk, attention.wv])
        self.wo = plain(attention.wo)
        num_kv_heads = num_outputs(attention.wk) // self.head_dim
        shape = (num_pages, page_size, num_kv_heads, self.head_dim)
        for name in ("keys", "values"):
            pages = torch.zeros(shape, device=_device(attention), dtype=dtype)
            self.register_buffer(name, pages, persistent=False)
        self.keys: Tensor
        self.values: Tensor

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, attend: PagedAttend) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q, k, v = self.wqkv(x_BTD)
        q_BTHD = rotate(q.view(heads), cos, sin)
        k_BTKD = rotate(k.view(heads), cos, sin)
        pages = Pages(self.keys, self.values)
        return self.wo(attend(pages, q_BTHD, k_BTKD, v.view(heads)).flatten(2))


class FusedFeedForward(nn.Module):
    """`model.FeedForward` with one matrix for the gate and what it lets through."""

    def __init__(self, feed_forward: FeedForward) -> None:
        super().__init__()
        self.w13 = joined([feed_forward.w1, feed_forward.w3])
        self.w2 = plain(feed_forward.w2)

    def forward(self, x: Tensor) -> Tensor:
        gate, through = self.w13(x)
        return self.w2(F.silu(gate) * through)


class PagedAttend:
    """`attend` for fused blocks: over a layer's pages, the rows (1, R, ...) of one step.

    `others` is the same for layers on other devices.
    """

    def __init__(
        self, rows: Rows, others: Mapping[torch.device, PagedAttend] | None = None
    ) -> None:
        self.rows, self.others = rows, others or {}

    def on(self, device: torch.device) -> PagedAttend:
        return self.others.get(device, self)

    def __call__(self, pages: Pages, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        out: Tensor = paged_attention(q_BTHD[0], k_BTKD[0], v_BTKD[0], *pages, *self.rows)
        return out[None]


class Moved(nn.Module):
    """A block of a network whose blocks lie on several devices: brings to it what it reads."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.block, self.device = block, device

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: PagedAttend) -> Tensor:
        x, cos, sin = (tensor.to(self.device) for tensor in (x, cos, sin))
        return self.block(x, cos, sin, attend.on(self.device))


@torch.no_grad()
def fuse(model: Llama, num_pages: int, page_size: int, dtype: torch.dtype) -> None:
    """Rewrites a network's blocks, one after another; pages lie where a block's weights do."""
    for block in cast("list[Block]", list(model.layers.values())):
        attention = FusedAttention(block.attention, num_pages, page_size, dtype)
        block.attention = attention  # type: ignore[assignment]
        block.feed_forward = FusedFeedForward(block.feed_forward)  # type: ignore[assignment]
    if model.output is not None:
        model.output = plain(model.output)  # type: ignore[assignment]


def _device(module: nn.Module) -> torch.device:
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device
