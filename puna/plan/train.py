"""What a training run takes: its layout and speed, and what these make of its tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from puna.config import ModelConfig
from puna.plan.counts import flops_per_token
from puna.plan.hardware import DEVICES, Cluster, DoesNotFitError
from puna.plan.layout import check_data, check_model, check_pieces
from puna.plan.search import Found, Run, choices, least_memory, search

# What share of a run's GPU-hours goes into steps at the speed of a healthy cluster. The rest is
# failures, work lost and done again, evaluation, and how far a run's software is from today's. One
# number, fitted to the four GPU-hours of Llama 2's table (arXiv 2307.09288); Llama 3's run was
# training for more than 90 % of its time (arXiv 2407.21783, section 3.3.4).
SHARE_OF_A_RUN = 0.81
SLOWEST = 1e-3  # tokens/s a device that are still some


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """`tokens` through `model` on `cluster`, of whose devices each does `tokens_per_second`, over
    the whole run; `dtype` is that of the blocks' products."""

    model: ModelConfig
    tokens: float
    cluster: Cluster
    tokens_per_second: float
    dtype: str = "bf16"

    @property
    def flops(self) -> float:
        """Operations of the whole run, by the formula of `counts`."""
        return self.tokens * flops_per_token(self.model)

    @property
    def mfu(self) -> float:
        """What share of the devices' peak in `dtype` the run's operations are."""
        return mfu(self.model, self.cluster, self.tokens_per_second, self.dtype)

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


def mfu(model: ModelConfig, cluster: Cluster, tokens_per_second: float, dtype: str) -> float:
    """Of a device that trains so many tokens a second, over its peak in `dtype`."""
    return tokens_per_second * flops_per_token(model) / cluster.device.peak(dtype)


def plan_train(run: Run, tokens: float) -> tuple[TrainPlan, Found]:
    """The fastest layout of a run, and what `tokens` take in it.

    DoesNotFitError where no layout is allowed, or none fits the memory.
    """
    if not 0 < tokens < float("inf"):
        raise ValueError(f"a run has a positive number of tokens, not {tokens:g}")
    run.kernels.cluster.device.peak(run.kernels.dtype)
    found = search(run)
    if found is None:
        raise DoesNotFitError(_why(run))
    speed = found.tokens_per_second * SHARE_OF_A_RUN
    plan = TrainPlan(run.model, tokens, run.kernels.cluster, speed, run.kernels.dtype)
    return plan, found


def _why(run: Run) -> str:
    cluster = run.kernels.cluster
    least = least_memory(run)
    if least is None:
        return _no_layout(run)
    choice, memory = least
    over = memory.peak - run.usable_memory
    return (
        f"this does not fit {_devices(cluster)}: the least is {memory.peak / 1e9:.1f} GB a device "
        f"({choice.layout}, --micro-batch-size {choice.micro_batch_size}, recompute "
        f"{choice.recompute}), {over / 1e9:.1f} GB more than the {run.usable_memory / 1e9:.1f} GB "
        f"that training may fill; {_what_would(run)}"
    )


def _no_layout(run: Run) -> str:
    """Why the rules allow nothing: of a layout that was given what they say, else what is near."""
    cluster, layout = run.kernels.cluster, run.layout
    if layout is not None:
        if layout.num_ranks != cluster.count:
            return (
                f"layout '{layout}' is for {layout.num_ranks} devices, and there are "
                f"{cluster.count}"
            )
        check_model(layout, run.model)
        check_data(layout, run.batch_size)
        check_pieces(layout, run.batch_size, run.micro_batch_size or 1)
    near = next((n for n in _fewer(cluster.count) if _allowed(_resized(run, n))), None)
    less = "" if near is None else f"; {near} devices would do, or another batch"
    return (
        f"no layout trains this model on {_devices(cluster)} in batches of about {run.batch_size} "
        f"windows{less}"
    )


def _what_would(run: Run) -> str:
    """The fewest devices of this kind, by doubling, and the smallest other kind that would do."""
    count = run.kernels.cluster.count
    ways = []
    sizes = () if run.layout else (count << n for n in range(1, 13))
    more = next((n for n in sizes if _has_room(_resized(run, n))), None)
    if more is not None:
        ways.append(f"{more} of them")
    kinds = sorted(DEVICES.values(), key=lambda row: row.memory)
    for row in kinds:
        cluster = Cluster(row, count)
        kernels = dataclasses.replace(run.kernels, cluster=cluster)
        other = dataclasses.replace(run, kernels=kernels)
        if row.bf16 and row.memory > run.kernels.cluster.device.memory and _has_room(other):
            ways.append(f"{_devices(cluster)}")
            break
    if not ways:
        return "shorter windows or a smaller model would"
    return f"{' or '.join(ways)} would do"


def _has_room(run: Run) -> bool:
    least = least_memory(run)
    return least is not None and least[1].peak <= run.usable_memory


def _allowed(run: Run) -> bool:
    return next(choices(run), None) is not None


def _resized(run: Run, count: int) -> Run:
    cluster = dataclasses.replace(run.kernels.cluster, count=count)
    return dataclasses.replace(run, kernels=dataclasses.replace(run.kernels, cluster=cluster))


def _fewer(count: int) -> Iterator[int]:
    """Numbers below `count`, from the nearest: all of the next 16, then powers of two."""
    yield from range(count - 1, max(0, count - 17), -1)
    yield from (1 << n for n in range(count.bit_length() - 1, -1, -1) if 1 << n < count)


def _devices(cluster: Cluster) -> str:
    return f"{cluster.count:,} x {cluster.device.name}"
