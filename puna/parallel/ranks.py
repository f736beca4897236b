"""Which of several processes this is; torchrun starts them, each with a device of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from puna.parallel.meeting import fresh


@dataclass(frozen=True, slots=True)
class Ranks:
    """Process `rank` of `size`; `group` is for tensors on devices, `control` for objects."""

    rank: int
    size: int
    device: torch.device
    group: Any = None
    control: Any = None


def join(device: str) -> Ranks:
    """Meets the other processes for generation; "cuda" becomes this process's own GPU.

    Raises ValueError where this process was not started by torchrun, or has no GPU of its own.
    """
    own = meet(device, "nccl" if torch.device(device).type == "cuda" else "gloo")
    # Without requests, a process waits for the next batch however long it takes.
    control = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    return Ranks(dist.get_rank(), dist.get_world_size(), own, dist.group.WORLD, control)


def check_device(device: str) -> None:
    """ValueError where torch knows no such device, or finds none."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"no device '{device}'; there are cpu and cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device}: torch {torch.__version__} finds no GPU; nvidia-smi lists those that "
            "the driver knows, and a torch that ends in +cpu uses none"
        )


def meet(device: str, backend: str, limit: timedelta | None = None) -> torch.device:
    """Joins the processes that torchrun started, unless it did; this one's own device.

    A collective may take as long as `limit`, by default torch's own.
    Raises ValueError where this process was not started by torchrun, or has no GPU of its own.
    """
    kind = torch.device(device).type
    if not dist.is_initialized():
        try:
            store, rank, num_ranks = next(iter(rendezvous("env://")))
        except ValueError:
            raise ValueError(
                "a model shared by several processes needs them; start them by: torchrun "
                "--nproc-per-node NUMBER -m puna ..."
            ) from None
        store = fresh(store, rank, num_ranks)
        dist.init_process_group(
            backend, timeout=limit, store=store, rank=rank, world_size=num_ranks
        )
    own = torch.device(kind)
    if kind == "cuda":
        own = torch.device(kind, dist.get_node_local_rank())
        if own.index >= torch.cuda.device_count():
            raise ValueError(
                f"process {own.index} of this machine has no GPU of its own; there are "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(own)
    return own


def least(number: int, ranks: Ranks) -> int:
    """The smallest of all processes' numbers."""
    found: list[int] = [0] * ranks.size
    dist.all_gather_object(found, number, group=ranks.control)
    return min(found)
