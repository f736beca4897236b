"""How long a step of training takes in a layout: computing, and what of talking is not hidden.

Weights are gathered and gradients scattered a block at a time, behind the block before (FSDP2);
replicas add theirs up once a step; groups that share matrices or windows wait for their
collectives; a pipeline waits to be filled and emptied; all wait for the slowest.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from statistics import NormalDist

from puna.config import ModelConfig
from puna.plan.compute import Kernels, head_seconds, layer_seconds, update_seconds
from puna.plan.hardware import Cluster
from puna.plan.layout import Layout
from puna.plan.memory import layer_parameters
from puna.plan.network import Group

# Of the time that collectives run behind products, what they slow these by: they take units and
# memory's bandwidth (16 to 24 of an A100's 108 units).
_SLOWED = 0.2
# How devices of a kind differ: a standard deviation of 2 %, for 5 % and more are seen in one node
# (S. Bekman, ml-engineering). A step takes the slowest's time.
SPREAD = 0.02
# What remains: gaps between kernels, allocation, data, the log. *Ours*, set before the first
# comparison with published runs (docs/planning.md) and not changed after it.
_REST = 0.08


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step by where they go; those of talking are what computing does not hide."""

    compute: float
    recompute: float
    tensor: float
    context: float
    data: float
    pipeline: float
    update: float
    rest: float

    @property
    def total(self) -> float:
        talk = self.tensor + self.context + self.data + self.pipeline
        return self.compute + self.recompute + talk + self.update + self.rest


@dataclass(frozen=True, slots=True)
class Exchange:
    """Seconds in which shards gather weights in bf16, scatter their gradients' sums in fp32, and
    replicas add these up: the first two for each piece of a batch, the last after its last piece
    (`train/several.py`, `accumulate`)."""

    gather: float
    scatter: float
    add: float


def exchange(cluster: Cluster, layout: Layout, weights: float) -> Exchange:
    """Of so many weights of a rank of the tensor group."""
    shards = Group(cluster, layout.fsdp * layout.cp, layout.tp)
    replicas = Group(cluster, layout.dp, layout.tp * shards.size)
    add = replicas.sum(4 * weights / shards.size)
    return Exchange(shards.gather(2 * weights), shards.gather(4 * weights), add)


def step_time(
    config: ModelConfig,
    kernels: Kernels,
    layout: Layout,
    *,
    micro_batch_size: int,
    num_pieces: int,
    recompute: str,
) -> StepTime:
    """A step of `num_pieces` pieces of `micro_batch_size` windows a data-parallel rank."""
    cluster, tp, cp, pp = kernels.cluster, layout.tp, layout.cp, layout.pp
    n = micro_batch_size * config.context_length // cp
    layers = config.num_layers // pp
    block = layer_parameters(config) / tp
    ends = config.vocab_size * config.dim * (1 if config.tied else 2) / tp
    layer = layer_seconds(kernels, config, micro_batch_size, tp, cp, recompute)
    head = head_seconds(kernels, config, micro_batch_size, tp, cp)

    tensor, context = talk_seconds(cluster, config, micro_batch_size, tp, cp, recompute)
    forward = layer.forward + (tensor + context) / 3
    backward = layer.backward + layer.again + (tensor + context) * 2 / 3

    inner, outer = exchange(cluster, layout, block), exchange(cluster, layout, ends)
    # FSDP2 copies into and out of what is sent, and adds up: 14 bytes a weight.
    copies = 14 * block / kernels.copy_rate
    root = outer.gather + outer.scatter + 14 * ends / kernels.copy_rate
    waiting = 0.0
    if pp == 1:
        scattered = _behind(inner.gather + inner.scatter, backward)
        piece = layers * (_behind(inner.gather, forward) + scattered + copies) + root
        added = _behind(inner.gather + inner.scatter + inner.add, backward) - scattered
        data = num_pieces * piece + layers * added + outer.add
    else:
        # Weights are gathered for the first piece, gradients scattered after the last.
        data = layers * (inner.gather + inner.scatter + inner.add + copies) + root + outer.add
        stages = Group(cluster, pp, layout.num_ranks // pp)
        messages = 2 * stages.pass_on(2.0 * n * config.dim / tp)
        # The last stage has the head besides, and the others wait for it.
        piece = layers * (forward + backward) + head + messages
        waiting = (pp - 1) * piece + num_pieces * messages
    blocks = num_pieces * layers
    spent = StepTime(
        compute=blocks * (layer.forward + layer.backward) + num_pieces * head,
        recompute=blocks * layer.again,
        tensor=blocks * tensor,
        context=blocks * context,
        data=data,
        pipeline=waiting,
        update=update_seconds(kernels, (layers * block + ends) / (layout.fsdp * cp)),
        rest=0.0,
    )
    return dataclasses.replace(spent, rest=spent.total * (drag(cluster.count) - 1))


@functools.lru_cache(maxsize=65536)
def talk_seconds(
    cluster: Cluster, config: ModelConfig, windows: int, tp: int, cp: int, recompute: str
) -> tuple[float, float]:
    """For what ranks of a tensor group, and of a context group, wait in a layer and piece."""
    n = windows * config.context_length // cp
    # Hidden states gathered and scattered, twice each forward and backward, and anew.
    anew = {"none": 0, "selective": 2, "full": 4}[recompute]
    tensor = (8 + anew) * Group(cluster, tp, 1).gather(2.0 * n * config.dim)
    # Keys and values of whole windows, forward; their gradients scattered, backward.
    keys = 2.0 * 2 * n * cp * config.kv_dim / tp
    return tensor, (2 + (recompute == "full")) * Group(cluster, cp, tp).gather(keys)


def _behind(talk: float, computing: float) -> float:
    """Seconds that talk behind so much computing costs: what it is longer, and what it slows."""
    shown = max(0.0, talk - computing)
    return shown + _SLOWED * (talk - shown)


@functools.cache
def drag(count: int) -> float:
    """By how much `count` devices together are slower than one is: the slowest, and the rest."""
    slowest = SPREAD * NormalDist().inv_cdf(1 - 1 / (count + 1))
    return (1 + max(0.0, slowest)) / (1 - _REST)
