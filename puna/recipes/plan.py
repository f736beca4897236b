"""What a run will be, before anything of it is there: its tokens, its memory, its FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.parallel.memory import Memory, count_memory
from puna.parallel.part import Options, Part
from puna.plan.counts import flops_per_token
from puna.train.loop import Settings
from puna.train.losses import chunked_next_token_loss_sum
from puna.train.pretrain import PretrainConfig

_COUNTED = (4, 5)  # layers; from three on each adds the same


@dataclass(frozen=True, slots=True)
class Plan:
    """`memory` is of one rank; with `state_only` it leaves out what is beside weights, gradients
    and optimizer, which is counted for several ranks without a pipeline."""

    config: PretrainConfig
    tokens: int
    tokens_per_batch: int
    flops: int
    memory: Memory
    state_only: bool


def plan(config: PretrainConfig) -> Plan:
    """The plan of a run; no memory is taken and nothing is written."""
    tokens_per_batch = config.last_batch_size * config.model.context_length
    tokens = config.settings.steps * tokens_per_batch
    counted = bool(config.settings.parallel) and config.layout.pp == 1
    memory = _counted_memory(config) if counted else _state(config)
    flops = tokens * flops_per_token(config.model)
    return Plan(config, tokens, tokens_per_batch, flops, memory, not counted)


def _state(config: PretrainConfig) -> Memory:
    """fp32 weights, gradients and both moments, shared by all ranks but replicas."""
    layout = config.layout
    size = 4 * config.model.num_parameters // (layout.num_ranks // layout.dp)
    return Memory(size, size, 2 * size, 4 * size)


def _counted_memory(config: PretrainConfig) -> Memory:
    """Counted for few layers, and what each more adds for the others."""
    few, more = _COUNTED
    if config.model.num_layers <= more:
        return _count(config, config.model.num_layers)
    counts = [dataclasses.astuple(_count(config, layers)) for layers in _COUNTED]
    rest = (config.model.num_layers - few) / (more - few)
    return Memory(*(round(a + rest * (b - a)) for a, b in zip(*counts, strict=True)))


def _count(config: PretrainConfig, num_layers: int) -> Memory:
    settings = config.settings

    def loss_sum(hidden: Tensor, part: Part, targets: Tensor) -> Tensor:
        return chunked_next_token_loss_sum(
            hidden, part.head(), targets, chunk=settings.loss_chunk, group=part.place.tensor
        )

    # torch.compile keeps less for the backward pass, if anything.
    options = Options(settings.dtype, settings.recompute)
    return count_memory(
        dataclasses.replace(config.model, num_layers=num_layers),
        config.layout,
        options,
        micro_batch_size=config.micro_batch_size,
        loss_sum=loss_sum,
        make_optimizer=lambda weights: _optimizer(weights, settings),
    )


def _optimizer(weights: Iterable[Tensor], settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=settings.learning_rate, fused=True)
