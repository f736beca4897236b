"""What a run will be, before anything of it is there: its tokens, its memory, its FLOPs, its days.

Memory is by the formulas of `puna.plan`; those are for bf16, in fp32 it is counted by running the
code without memory, which is the formulas' reference too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.parallel.memory import Memory as Counted
from puna.parallel.memory import count_memory
from puna.parallel.part import Options, Part
from puna.plan.compute import Kernels
from puna.plan.counts import flops_per_token
from puna.plan.hardware import Cluster, device
from puna.plan.layout import SCHEDULES
from puna.plan.memory import Memory, rank_memory
from puna.plan.search import Run
from puna.plan.train import TrainPlan, plan_train
from puna.train.loop import Settings
from puna.train.losses import chunked_next_token_loss_sum
from puna.train.pretrain import PretrainConfig

_COUNTED = (4, 5)  # layers; from three on each adds the same
USUAL_GPU = "a100-80g"  # the paper's


@dataclass(frozen=True, slots=True)
class Plan:
    """`memory` is of one rank; with `state_only` it leaves out what is beside weights, gradients
    and optimizer, which is known of layouts of several ranks."""

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
    settings, layout = config.settings, config.layout
    several = bool(settings.parallel) and (layout.pp == 1 or SCHEDULES[settings.schedule] == 1)
    memory = _state(config)
    if several and settings.dtype == "bf16":
        memory = _by_formula(config)
    elif several and layout.pp == 1:
        counted = counted_memory(config)
        state = (counted.weights, counted.gradients, counted.optimizer)
        memory = Memory(*state, 0, 0, counted.working)
    flops = tokens * flops_per_token(config.model)
    state_only = memory.working == 0
    return Plan(config, tokens, tokens_per_batch, flops, memory, state_only)


def takes(config: PretrainConfig, gpu: str = USUAL_GPU) -> TrainPlan:
    """How long the run is on as many of these GPUs as its layout has ranks.

    DoesNotFitError where that is more than they hold.
    """
    settings = config.settings
    cluster = Cluster(device(gpu), config.layout.num_ranks)
    kernels = Kernels(cluster, "fp8" if settings.float8 else "bf16", settings.compile)
    run = Run(
        config.model, kernels, config.last_batch_size, settings.loss_chunk, settings.recompute,
        config.layout, config.micro_batch_size,
    )  # fmt: skip
    tokens = settings.steps * config.last_batch_size * config.model.context_length
    return plan_train(run, tokens)[0]


def _state(config: PretrainConfig) -> Memory:
    """fp32 weights, gradients and both moments, shared by all ranks but replicas."""
    layout = config.layout
    size = 4 * config.model.num_parameters // (layout.num_ranks // layout.dp)
    return Memory(size, size, 2 * size, 0, 0, 0)


def _by_formula(config: PretrainConfig) -> Memory:
    share = config.last_batch_size // config.layout.num_data_ranks
    return rank_memory(
        config.model,
        config.layout,
        micro_batch_size=config.micro_batch_size,
        num_pieces=share // config.micro_batch_size,
        recompute=config.settings.recompute,
        loss_chunk=config.settings.loss_chunk,
    )


def counted_memory(config: PretrainConfig) -> Counted:
    """Counted for few layers, and what each more adds for the others."""
    few, more = _COUNTED
    if config.model.num_layers <= more:
        return _count(config, config.model.num_layers)
    counts = [dataclasses.astuple(_count(config, layers)) for layers in _COUNTED]
    rest = (config.model.num_layers - few) / (more - few)
    return Counted(*(round(a + rest * (b - a)) for a, b in zip(*counts, strict=True)))


def _count(config: PretrainConfig, num_layers: int) -> Counted:
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
