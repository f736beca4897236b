"""Fully sharded data parallel (arXiv 2304.11277), by torch's FSDP2, and replicas of it (HSDP).

Every layout goes through it, be the shards 1: so weights are DTensors, sums of gradients are sums,
and mixed precision is one thing everywhere: fp32 shards that the optimizer updates, gathered
and computed with as bf16, gradients summed in fp32.
"""

from __future__ import annotations

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


def square_norm(parameters: list[nn.Parameter]) -> float:
    """This rank's part of the squared norm of all gradients: parts add up over all ranks to it."""
    total = torch.zeros((), dtype=torch.float64)
    for parameter in parameters:
        if parameter.grad is None:
            continue
        part = local(parameter.grad)
        square = part.detach().double().square().sum() / _num_copies(parameter)
        total = total.to(square.device) + square
    return total.item()


def share_of(whole: Tensor, like: Tensor, place: Place) -> Tensor:
    """What of a whole weight lies here, where `like` is this rank's DTensor of it."""
    if not isinstance(like, DTensor):
        return whole
    cut = like.placements[-1]
    if place.layout.tp > 1 and isinstance(cut, Shard):
        whole = whole.chunk(place.layout.tp, cut.dim)[place.mesh.get_local_rank("tp")]
    shards, index = place.mesh["shard"].size(), place.mesh.get_local_rank("shard")
    # As FSDP cuts the first dimension; where there are fewer rows than ranks, some have none.
    size = -(-whole.shape[0] // shards)
    start = min(index * size, whole.shape[0])
    return whole[start : min(start + size, whole.shape[0])]


def _num_copies(tensor: Tensor) -> int:
    """How many ranks of its mesh have the same part of a DTensor."""
    if not isinstance(tensor, DTensor):
        return 1
    mesh, copies = tensor.device_mesh, 1
    for dim, placement in enumerate(tensor.placements):
        copies *= mesh.size(dim) if placement.is_replicate() else 1
    return copies
