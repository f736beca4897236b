"""Fully sharded data parallel (arXiv 2304.11277), by torch's FSDP2, and replicas of it (HSDP).

Every layout goes through it, be the shards 1: so weights are DTensors, sums of gradients are sums,
and mixed precision is one thing everywhere: fp32 shards that the optimizer updates, gathered
and computed with as bf16, gradients summed in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from puna.parallel.place import Place


def shard(root: nn.Module, blocks: list[nn.Module], place: Place, *, bf16: bool) -> None:
    """Shards each block by itself, and what else is in `root` with it."""
    # Inputs are left as they are: the angles of the rotation stay fp32.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,
    )
    # Several pieces are on their way through a stage: its weights stay gathered until the last.
    reshard = place.layout.pp == 1
    for module in blocks:
        fully_shard(module, mesh=place.data_mesh, reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(root, mesh=place.data_mesh, mp_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # The loss was divided by all tokens: gradients are added, not averaged.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, the memory itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def unsharded(tensor: Tensor) -> Tensor:
    """All of a DTensor, on the CPU, from the ranks that have parts of it: each of them asks."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def square_norm(parameters: list[nn.Parameter]) -> float:
    """This rank's part of the squared norm of all gradients: parts add up over all ranks to it."""
    total = torch.zeros((), dtype=torch.float64)
    for parameter in parameters:
        if parameter.grad is None:
            continue
        part = local(parameter.grad)
        square = part.detach().double().square().sum() / num_copies(parameter)
        total = total.to(square.device) + square
    return total.item()


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a whole tensor: where it begins, and its shape."""

    begin: tuple[int, ...]
    shape: tuple[int, ...]


def box_of(weight: Tensor, place: Place) -> Box:
    """Which part of a whole weight lies here, where `weight` is this rank's DTensor of it."""
    begin, shape = [0] * weight.ndim, list(weight.shape)
    dim = _tensor_dim(weight, place)
    if dim is not None:
        shape[dim] //= place.layout.tp
        begin[dim] = place.mesh.get_local_rank("tp") * shape[dim]
    size = _rows(shape[0], place)
    start = min(place.mesh.get_local_rank("shard") * size, shape[0])
    begin[0] += start
    shape[0] = min(size, shape[0] - start)
    return Box(tuple(begin), tuple(shape))


def share_of(whole: Tensor, like: Tensor, place: Place) -> Tensor:
    """What of a whole weight lies here, where `like` is this rank's DTensor of it."""
    box = box_of(like, place)
    return whole[tuple(slice(b, b + n) for b, n in zip(box.begin, box.shape, strict=True))]


def _tensor_dim(tensor: Tensor, place: Place) -> int | None:
    """The dimension by which a tensor group has shares of this weight."""
    if place.layout.tp == 1 or not isinstance(tensor, DTensor):
        return None
    cut = tensor.placements[-1]
    return cut.dim if isinstance(cut, Shard) else None


def _rows(num_rows: int, place: Place) -> int:
    """How many rows of the first dimension FSDP gives a rank; the last have fewer, or none."""
    return -(-num_rows // place.mesh["shard"].size())


def num_copies(tensor: Tensor) -> int:
    """How many ranks of its mesh have the same part of a DTensor."""
    if not isinstance(tensor, DTensor):
        return 1
    mesh, copies = tensor.device_mesh, 1
    for dim, placement in enumerate(tensor.placements):
        copies *= mesh.size(dim) if placement.is_replicate() else 1
    return copies
