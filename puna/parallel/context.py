"""Context parallel: each rank has a part of every window's positions.

Queries stay; keys and values of the whole window are gathered at each layer (as Llama 3 does,
arXiv 2407.21783, section 3.3.2), so that any mask works: a rank takes its queries' rows of it. With
grouped-query attention they are small beside the queries.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from puna.attention import Attend, sdpa
from puna.parallel.collectives import gather


def part(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's part of a dimension that the group's size divides."""
    size = x.shape[dim] // group.size()
    return x.narrow(dim, group.rank() * size, size)


def gathered(mask: Tensor, group: dist.ProcessGroup) -> Attend:
    """Attention of this rank's queries to all keys; `mask` has its rows (B, 1, T / ranks, T)."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, gather(k, 1, group), gather(v, 1, group), mask=mask)

    return attend
