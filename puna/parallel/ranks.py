"""Which of several processes this is; torchrun starts them, each with a device of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """Process `rank` of `size`; `group` is for tensors on devices, `control` for objects."""

    rank: int
    size: int
    device: torch.device
    group: Any = None
    control: Any = None


def join(device: str) -> Ranks:
    """Meets the other processes; "cuda" becomes this process's own GPU.

    Raises ValueError where this process was not started by torchrun, or has no GPU of its own.
    """
    kind = torch.device(device).type
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        except ValueError:
            raise ValueError(
                "tensor parallel runs in several processes; start them by: torchrun "
                "--nproc-per-node NUMBER -m puna ..."
            ) from None
    own = torch.device(kind)
    if kind == "cuda":
        own = torch.device(kind, dist.get_node_local_rank())
        if own.index >= torch.cuda.device_count():
            raise ValueError(
                f"process {own.index} of this machine has no GPU of its own; there are "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(own)
    # Without requests, a process waits for the next batch however long it takes.
    control = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    return Ranks(dist.get_rank(), dist.get_world_size(), own, dist.group.WORLD, control)


def least(number: int, ranks: Ranks) -> int:
    """The smallest of all processes' numbers."""
    found: list[int] = [0] * ranks.size
    dist.all_gather_object(found, number, group=ranks.control)
    return min(found)
