"""How long collectives take: rings over a node's links, and over nodes by all their networks.

A ring passes each node once, so that the devices of a node that are in the group bring their
networks together; each step waits for its slowest hop.
"""

from __future__ import annotations

from dataclasses import dataclass

from puna.plan.hardware import Cluster

# Of what links and networks do at best, what NCCL's rings reach: 230 GB/s of 300 in an A100's node,
# 190 of 200 between nodes of eight (nccl-tests, bus bandwidth of large messages).
_LINKS, _NETWORK = 0.77, 0.90
_HOP, _FAR_HOP = 2e-6, 6e-6  # s a step, in a node and between nodes; *ours*
# Of an all-reduce in a node, which few bytes go through fast: its beginning, and a step over NVLink
# and over PCI Express. Source: NCCL, src/graph/tuning.cc, ring, LL.
_BEGIN, _NVLINK_HOP, _PCI_HOP = 6.6e-6, 0.6e-6, 1.0e-6
_SLOW_LINK = 64  # GB/s one way, below which a link is PCI Express


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that are `stride` apart, of which there are `size`."""

    cluster: Cluster
    size: int
    stride: int

    @property
    def in_one_node(self) -> bool:
        return self.size * self.stride <= self.cluster.per_node

    @property
    def rate(self) -> float:
        """Bytes/s that each member sends while all do."""
        links = self.cluster.device.link * 1e9 * _LINKS
        if self.in_one_node:
            return links
        members = max(1, self.cluster.per_node // self.stride)
        network = members * self.cluster.network_rate * _NETWORK
        return min(links, network) if members > 1 else network

    def gather(self, whole: float) -> float:
        """An all-gather of `whole` bytes, or the scattering of sums of as many."""
        if self.size == 1:
            return 0.0
        hop = _HOP if self.in_one_node else _FAR_HOP
        return (self.size - 1) * (whole / self.size / self.rate + hop)

    def sum(self, whole: float) -> float:
        """An all-reduce of `whole` bytes."""
        if self.size == 1 or not self.in_one_node:
            return 2 * self.gather(whole)
        hop = _PCI_HOP if self.cluster.device.link <= _SLOW_LINK else _NVLINK_HOP
        return _BEGIN + 2 * (self.size - 1) * (whole / self.size / self.rate + hop)

    def pass_on(self, size: float) -> float:
        """One message to the next member."""
        hop = _HOP if self.in_one_node else _FAR_HOP
        return 0.0 if self.size == 1 else size / self.rate + hop
