"""A process's place in a layout: its device, and whom it talks to about what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from puna.parallel.beats import PHASES
from puna.parallel.ranks import meet
from puna.plan.layout import Layout, check_ranks

_T = TypeVar("_T")
HANG_TIMEOUT = 300.0  # seconds that a rank may stand still; *ours*


@dataclass(frozen=True, slots=True)
class Place:
    """Where this rank stands. `mesh` has the dimensions pp, dp, shard and tp.

    A context-parallel group holds the same weights, so `shard` counts fsdp x cp: its ranks share
    them too. `context` is the group of those that share a window, `tensor` of those that share
    matrices, None where nobody does.
    """

    layout: Layout
    device: torch.device
    mesh: DeviceMesh
    context: dist.ProcessGroup | None
    tensor: dist.ProcessGroup | None

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def data_rank(self) -> int:
        """Which share of a batch is this rank's, of `layout.num_data_ranks`."""
        shard = self.mesh.get_local_rank("shard")
        return self.mesh.get_local_rank("dp") * self.layout.fsdp + shard // self.layout.cp

    @property
    def stage(self) -> int:
        """Which stage of the pipeline is this rank's."""
        return self.mesh.get_local_rank("pp")

    @property
    def has_last_stage(self) -> bool:
        return self.stage == self.layout.pp - 1

    @property
    def data_mesh(self) -> DeviceMesh:
        """Over which weights are replicated and sharded."""
        return self.mesh["dp", "shard"] if self.layout.dp > 1 else self.mesh["shard"]

    def total(self, *values: float) -> list[float]:
        """The sums of values over all ranks, in fp64."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def largest(self, value: float) -> float:
        """The largest of all ranks' values."""
        most = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return most.item()

    def everyone(self, value: _T) -> list[_T]:
        """Each rank's value, by rank."""
        found = [value] * dist.get_world_size()
        dist.all_gather_object(found, value)
        return found


def take_place(layout: Layout, device: str, hang_timeout: float = HANG_TIMEOUT) -> Place:
    """Meets the other processes and forms the groups.

    `hang_timeout` is that of `meet_to_train`.
    ValueError where the processes are not as many as the layout's, or have no GPU of their own.
    """
    own = meet_to_train(device, hang_timeout)
    check_ranks(layout, dist.get_world_size())
    shape = (layout.pp, layout.dp, layout.fsdp * layout.cp, layout.tp)
    mesh = init_device_mesh(own.type, shape, mesh_dim_names=("pp", "dp", "shard", "tp"))
    tensor = mesh.get_group("tp") if layout.tp > 1 else None
    return Place(layout, own, mesh, _context_group(layout), tensor)


def _context_group(layout: Layout) -> dist.ProcessGroup | None:
    if layout.cp == 1:
        return None
    by_context = torch.arange(layout.num_ranks).view(-1, layout.cp, layout.tp)
    groups = by_context.transpose(1, 2).reshape(-1, layout.cp).tolist()
    group, _ = dist.new_subgroups_by_enumeration(groups)
    return group


def meet_to_train(device: str, hang_timeout: float = HANG_TIMEOUT) -> torch.device:
    """Joins the processes that torchrun started; this one's own device.

    The watchdog (`parallel.watchdog`) is to speak before a collective gives up: that may take twice
    what it allows at most, and without it, with a `hang_timeout` of 0, as long as torch says.
    """
    cuda = torch.device(device).type == "cuda"
    limit = timedelta(seconds=2 * max(PHASES.values()) * hang_timeout) if hang_timeout else None
    return meet(device, "cpu:gloo,cuda:nccl" if cuda else "gloo", limit)


def first_alone(action: Callable[[], None]) -> bool:
    """Runs `action` on the first rank while the others wait; whether it went well.

    Where it raised, the first rank raises and the others get False.
    """
    went_well = [False]
    try:
        if dist.get_rank() == 0:
            action()
            went_well = [True]
    finally:
        dist.broadcast_object_list(went_well, src=0)
    return went_well[0]


def first_to_say(what: str) -> bool:
    """Whether no other process that this one met has asked the same before."""
    if not dist.is_initialized():
        return True
    # The store is there even where the others wait for a collective.
    store = dist.distributed_c10d._get_default_store()
    try:
        return store.add(f"said {hashlib.sha256(what.encode()).hexdigest()}", 1) == 1
    except RuntimeError:  # it was on a machine that is gone
        return True


def leave() -> None:
    """Parts from the other processes, if it met them."""
    if dist.is_initialized():
        dist.destroy_process_group()
