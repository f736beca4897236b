"""`QuantizedLinear`: a linear layer over packed weights, in place of `nn.Linear`.

Plain torch, the reference of every kernel: unpack some rows, multiply, forget them. On a GPU the
kernels of `kernels/ops.py` multiply, where they hold the scheme. Gradients reach the input (for
adapters on top of a quantized model), never the packed weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.kernels.ops import packed_linear, runs_packed
from puna.model import Llama
from puna.quantize.grouped import Grouped
from puna.quantize.schemes import Scheme, scheme

_ROWS = 1024  # that are unpacked at a time


class QuantizedLinear(nn.Module):
    """x (..., I) -> x W^T (..., O); its buffers are the packed tensors, named as in the scheme."""

    def __init__(self, scheme: Scheme, tensors: dict[str, Tensor], group_size: int) -> None:
        super().__init__()
        self.scheme, self.group_size = scheme, group_size
        self.out_features = len(tensors["scales"])
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @classmethod
    def from_weight(
        cls, weight: Tensor, name: str, group_size: int | None = None
    ) -> QuantizedLinear:
        """Rounds `weight` (O, I) with the scheme called `name`; its own group size if None."""
        kind = scheme(name)
        size = kind.group_size if group_size is None else group_size
        tensors = {k: v.to(weight.device) for k, v in kind.pack(weight, size).items()}
        return cls(kind, tensors, weight.shape[1] if size == -1 else size)

    @classmethod
    def from_grouped(cls, grouped: Grouped, name: str) -> QuantizedLinear:
        """Takes integers as they are; ValueError where the scheme has none or too few bits."""
        kind = scheme(name)
        if kind.pack_grouped is None:
            raise ValueError(f"the scheme {name} does not hold integers; use int4 or int8")
        return cls(kind, kind.pack_grouped(grouped), grouped.group_size)

    @property
    def in_features(self) -> int:
        return self._rows(slice(0, 1)).shape[1]

    def dequantize(self) -> Tensor:
        """The weight (O, I) in float32, inputs in the network's order."""
        packed = self._rows(slice(None))
        order = self._buffers.get("order")
        if order is None:
            return packed
        return torch.empty_like(packed).index_copy_(1, order.long(), packed)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        order = self._buffers.get("order")
        if order is not None:
            x = x.index_select(-1, order)
        if not torch.is_grad_enabled():
            return self.product(x)
        out: Tensor = _Product.apply(x, self)
        return out

    def extra_repr(self) -> str:
        return f"{self.scheme.name}, out_features={self.out_features}, group={self.group_size}"

    def product(self, x: Tensor) -> Tensor:
        """x W^T for x (..., I) in the packed order."""
        tensors = self._tensors()
        if self.scheme.product is not None:
            return self.scheme.product(tensors, x)
        if runs_packed(x, self.scheme.name, self.group_size):
            return packed_linear(x, tensors, self.scheme.name, self.group_size)
        out = x.new_empty((*x.shape[:-1], self.out_features))
        for rows in self._row_spans():
            out[..., rows] = F.linear(x, self._rows(rows).to(x.dtype))
        return out

    def transposed_product(self, grad: Tensor) -> Tensor:
        """grad W for grad (..., O): the gradient of the input, in the packed order."""
        total: Tensor | None = None
        for rows in self._row_spans():
            part = grad[..., rows] @ self._rows(rows).to(grad.dtype)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._buffers.items() if tensor is not None}

    def _rows(self, rows: slice) -> Tensor:
        return self.scheme.unpack(self._tensors(), self.group_size, rows)

    def _row_spans(self) -> Iterator[slice]:
        for begin in range(0, self.out_features, _ROWS):
            yield slice(begin, min(begin + _ROWS, self.out_features))


class _Product(torch.autograd.Function):
    """Keeps nothing for the backward pass but the layer: the weights are unpacked again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return linear.product(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.transposed_product(grad), None


def in_blocks(name: str) -> bool:
    """The linear layers that are quantized by default: all but the output head."""
    return name.startswith("layers.")


def replace_linears(
    model: Llama,
    name: str,
    *,
    group_size: int | None = None,
    grouped: Callable[[str], Grouped | None] = lambda weight: None,
    select: Callable[[str], bool] = in_blocks,
) -> list[str]:
    """Puts `QuantizedLinear`s of the scheme `name` in place of a network's linear layers.

    Of those whose module name `select` takes: made of `grouped("layers.0.attention.wq.weight")`
    where that is not None, its old weight then not being read (it may be on `meta`); else by
    rounding that weight. Returns the module names, in order.
    """
    chosen = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and select(path)
    ]
    for path, linear in chosen:
        integers = grouped(f"{path}.weight")
        if integers is None:
            new = QuantizedLinear.from_weight(linear.weight, name, group_size)
        elif integers.codes.shape == linear.weight.shape:
            new = QuantizedLinear.from_grouped(integers, name).to(model.norm.weight.device)
        else:
            raise ValueError(
                f"{path} has shape {tuple(linear.weight.shape)}, its integers "
                f"{integers.codes.shape}"
            )
        model.set_submodule(path, new)
    return [path for path, _ in chosen]
