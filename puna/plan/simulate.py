"""A run on thousands of ranks, played through: slow ranks, failures and restarts.

What a formula takes for equal is drawn here: ranks differ from one another and from step to step,
and the slowest of all decides; failures come when they come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from puna.plan.failures import Reliability, expected_seconds
from puna.plan.schedule import Seconds, run_pipeline

_MOST_FAILURES = 100_000  # of a run that is played through, on the mean


@dataclass(frozen=True, slots=True)
class Spread:
    """How ranks differ, as shares of a piece's time.

    `ranks` standard deviation between ranks, the same in all steps; `steps` from step to step;
    `slow_share` of the ranks are slower by `slow_by`. The first two are *ours*; MegaScale
    (arXiv 2402.15627, section 6.3) found 0.5 % of machines some 10 % slower, and took them out.
    """

    ranks: float = 0.01
    steps: float = 0.01
    slow_share: float = 0.0
    slow_by: float = 0.10

    def __post_init__(self) -> None:
        for name in ("ranks", "steps", "slow_share", "slow_by"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share, from 0 to 1")


@dataclass(frozen=True, slots=True)
class Steps:
    """Simulated steps: `seconds` (steps,) of each, `ideal` what equal ranks would take.

    `bubble` the share in which stages wait for one another, `slowest` what waiting for slow ranks
    adds to `ideal`, as a share.
    """

    seconds: Seconds
    ideal: float
    bubble: float

    @property
    def slowest(self) -> float:
        return float(self.seconds.mean()) / self.ideal - 1


def simulate_steps(
    forward: Seconds,
    backward: Seconds,
    pieces: int,
    *,
    replicas: int,
    ranks_per_stage: int,
    spread: Spread,
    generator: np.random.Generator,
    steps: int = 20,
    schedule: str = "1f1b",
    chunks: int = 1,
    transfer: float = 0.0,
    others: float = 0.0,
) -> Steps:
    """Steps of `replicas` pipelines; a stage waits for the slowest of its ranks in each piece, a
    step for the slowest pipeline.

    `forward` and `backward` (stages,): seconds of a piece; `others` seconds a step of what all wait
    for: gradients over the network, the optimizer.
    """
    stages = len(forward)
    shape = (replicas, stages, ranks_per_stage)
    lasting = 1 + spread.ranks * generator.standard_normal(shape)
    lasting += spread.slow_by * (generator.random(shape) < spread.slow_share)
    factors = np.empty((steps, replicas, stages))
    for step in range(steps):  # one at a time: ranks are many
        noise = spread.steps * generator.standard_normal(shape)
        factors[step] = np.maximum(lasting + noise, 0.1).max(axis=-1)
    ideal = run_pipeline(schedule, forward, backward, pieces, chunks=chunks, transfer=transfer)
    timeline = run_pipeline(
        schedule, factors * forward, factors * backward, pieces, chunks=chunks, transfer=transfer
    )
    seconds: Seconds = timeline.total.max(axis=-1) + others
    return Steps(seconds, float(ideal.total) + others, float(ideal.bubble))


def expected_maximum(count: int) -> float:
    """Of `count` independent standard normal numbers, within 1 % of their spread (Blom, 1958)."""
    if count < 1:
        raise ValueError("there is no largest of no numbers")
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Runs:
    """Simulated runs: `wall` seconds and `failures` (runs,) of each."""

    wall: Seconds
    failures: NDArray[np.int64]

    def between(self, low: float, high: float) -> tuple[float, float]:
        """Quantiles of the wall time."""
        found = np.quantile(self.wall, (low, high))
        return float(found[0]), float(found[1])


def simulate_runs(
    work: float,
    interval: float,
    reliability: Reliability,
    generator: np.random.Generator,
    runs: int = 200,
) -> Runs:
    """Runs of `work` seconds of progress that are saved every `interval` of them.

    A failure loses what was not saved, and the restart; one may come during a restart too.
    ValueError for a run that does not end.
    """
    if not 0 < work < math.inf or not 0 < interval < math.inf:
        raise ValueError("work and interval must be positive numbers of seconds")
    failures_expected = expected_seconds(work, interval, reliability) / reliability.mtbf
    if failures_expected > _MOST_FAILURES:
        raise ValueError(
            f"a failure every {reliability.mtbf:,.1f} seconds, {failures_expected:,.3g} in all, is "
            "too many to play through; use fewer GPUs, or save and start faster"
        )
    pieces = max(1, math.ceil(work / interval))
    length = work / pieces + reliability.save
    wall, done = np.zeros(runs), np.zeros(runs, np.int64)
    failures = np.zeros(runs, np.int64)
    restart = np.zeros(runs)
    going = np.arange(runs)
    while going.size:
        until_failure = generator.exponential(reliability.mtbf, going.size)
        left = restart[going] + (pieces - done[going]) * length
        finished = left <= until_failure
        wall[going] += np.minimum(left, until_failure)
        failed = going[~finished]
        useful = np.maximum(until_failure[~finished] - restart[failed], 0)
        done[failed] += np.floor(useful / length).astype(np.int64)
        failures[failed] += 1
        restart[failed] = reliability.restart
        going = failed
    return Runs(wall, failures)
