"""What a training run takes: the plan that costs, failures and comparisons are made of."""

from __future__ import annotations

from dataclasses import dataclass

from puna.config import ModelConfig
from puna.plan.counts import flops_per_token
from puna.plan.hardware import Cluster


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """`tokens` through `model` on `cluster`, of whose devices each does `tokens_per_second`."""

    model: ModelConfig
    tokens: float
    cluster: Cluster
    tokens_per_second: float

    @property
    def flops(self) -> float:
        """Operations of the whole run, by the formula of `counts`."""
        return self.tokens * flops_per_token(self.model)

    @property
    def mfu(self) -> float:
        """What share of the devices' peak in bf16 the run's operations are."""
        peak = self.cluster.device.peak("bf16")
        return self.tokens_per_second * flops_per_token(self.model) / peak

    @property
    def gpu_hours(self) -> float:
        return self.tokens / self.tokens_per_second / 3600

    @property
    def days(self) -> float:
        return self.gpu_hours / self.cluster.count / 24

    @property
    def power(self) -> float:
        """Watts that the cluster's devices take at most, without what cools and feeds them."""
        return self.cluster.count * self.cluster.power
