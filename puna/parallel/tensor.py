"""Tensor parallel (Megatron-LM, arXiv 1909.08053): each process holds a share of every matrix.

Queries, keys, values and both halves of the gate are cut by outputs, in whole heads; what follows
them, `wo` and `w2`, by inputs, so that a block needs two sums over the processes and nothing else.
The head is cut by tokens of the vocabulary, and its logits are gathered.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from puna.config import ModelConfig
from puna.kernels.layouts import RUN, SUPER
from puna.parallel.ranks import Ranks
from puna.quantize.linear import QuantizedLinear

_BY_OUTPUTS = ("wq", "wk", "wv", "w1", "w3")
_BY_INPUTS = ("wo", "w2")


class Sharded(nn.Module):
    """A rank's share of a linear layer, and what puts the shares' outputs together."""

    def __init__(self, linear: nn.Module, group: Any, size: int) -> None:
        super().__init__()
        self.linear, self.group, self.size = linear, group, size


class Summed(Sharded):
    """A share of the inputs: the outputs are sums over all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x).contiguous()
        dist.all_reduce(out, group=self.group)
        return out


class Gathered(Sharded):
    """A share of the outputs, of which every rank gets all."""

    def forward(self, x: Tensor) -> Tensor:
        share: Tensor = self.linear(x).contiguous()
        shares = [torch.empty_like(share) for _ in range(self.size)]
        dist.all_gather(shares, share, group=self.group)
        return torch.cat(shares, dim=-1)


def check(config: ModelConfig, size: int) -> None:
    """ValueError where `size` ranks cannot share a model of this shape evenly."""
    if config.num_kv_heads % size:
        raise ValueError(
            f"{config.num_kv_heads} key/value heads cannot be shared by {size} processes; use a "
            "number that divides them"
        )
    if config.ffn_dim % size:
        raise ValueError(f"a feed-forward of {config.ffn_dim} does not divide by {size} processes")


def place(path: str, linear: nn.Module, ranks: Ranks) -> nn.Module:
    """What a rank has in place of the whole linear layer called `path`.

    ValueError where a quantized layer's groups do not divide.
    """
    name = path.rpartition(".")[2]
    if name in _BY_OUTPUTS:
        return by_outputs(linear, ranks.rank, ranks.size)
    try:
        if name in _BY_INPUTS:
            share = by_inputs(linear, ranks.rank, ranks.size)
            return Summed(share, ranks.group, ranks.size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if name == "output" and num_outputs(linear) % ranks.size == 0:
        share = by_outputs(linear, ranks.rank, ranks.size)
        return Gathered(share, ranks.group, ranks.size)
    return linear


def by_outputs(linear: nn.Module, rank: int, size: int) -> nn.Module:
    """The rank's share of the outputs; `size` divides them."""
    count = num_outputs(linear) // size
    rows = slice(rank * count, (rank + 1) * count)
    if isinstance(linear, QuantizedLinear):
        tensors = {
            name: tensor if name == "order" else tensor[rows].clone()
            for name, tensor in linear.named_buffers()
        }
        return QuantizedLinear(linear.scheme, tensors, linear.group_size)
    return _dense(cast(Tensor, linear.weight)[rows])


def by_inputs(linear: nn.Module, rank: int, size: int) -> nn.Module:
    """The rank's share of the inputs; ValueError where it would cut a group."""
    if not isinstance(linear, QuantizedLinear):
        weight = cast(Tensor, linear.weight)
        count = weight.shape[1] // size
        return _dense(weight[:, rank * count : (rank + 1) * count])
    tensors = dict(linear.named_buffers())
    if "order" in tensors:
        raise ValueError("weights in order of activation (act_order) cannot be cut by inputs")
    num_inputs = linear.in_features
    count = num_inputs // size
    # A scale for a whole row serves every share of it.
    whole_rows = linear.group_size == num_inputs
    unit = RUN if whole_rows else max(RUN, linear.group_size)
    if "supers" in tensors:
        unit = max(unit, SUPER)
    if num_inputs % size or count % unit:
        raise ValueError(f"{num_inputs} inputs in groups of {unit} cannot be cut in {size}")
    shares = {}
    for name, tensor in tensors.items():
        if whole_rows and tensor.shape[1] == 1:
            shares[name] = tensor
            continue
        width = tensor.shape[1] // size
        shares[name] = tensor[:, rank * width : (rank + 1) * width].contiguous()
    return QuantizedLinear(linear.scheme, shares, count if whole_rows else linear.group_size)


def _dense(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    # A copy of its own, so that the whole matrix is let go.
    share = weight.detach().clone(memory_format=torch.contiguous_format)
    linear.weight = nn.Parameter(share, requires_grad=False)
    return linear


def num_outputs(linear: nn.Module) -> int:
    """Of a linear layer, dense or quantized."""
    return int(cast(int, linear.out_features))
