"""Failures of a long run: how many, when to save, and what share of the time is progress.

Failures come at random with a constant rate a GPU; one stops all. The work since the last
checkpoint is lost and the run starts again, during which it may fail again. Sources: Young, "A
first order approximation to the optimum checkpoint interval" (CACM 17, 1974); Daly, "A higher order
estimate of the optimum checkpoint interval for restart dumps" (FGCS 22, 2006), equations 20, 37.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Record:
    """Failures that a published run had."""

    name: str
    gpus: int
    days: float
    failures: int
    source: str

    @property
    def hours_per_failure(self) -> float:
        """GPU-hours between two failures."""
        return self.gpus * self.days * 24 / self.failures


RECORDS: dict[str, Record] = {
    "llama3": Record(
        "Llama 3 405B", 16_384, 54, 419,
        "arXiv 2407.21783, section 3.3.4: unexpected interruptions, H100",
    ),
}  # fmt: skip
GPU_HOURS_PER_FAILURE = RECORDS["llama3"].hours_per_failure
# Seconds from a failure to the first new step: noticing it, other machines, loading. *Ours*.
RESTART_SECONDS = 900.0
# Bytes a second at which a node writes its share of a checkpoint: Llama 3's storage sustains 2 TB/s
# for 2,048 nodes (arXiv 2407.21783, section 3.3.1).
NODE_WRITE_BANDWIDTH = 1e9
# fp32 weights and both moments of AdamW, which a checkpoint of `puna.train` has.
CHECKPOINT_BYTES_PER_PARAMETER = 12


@dataclass(frozen=True, slots=True)
class Reliability:
    """`mtbf` seconds between failures of the whole run, `save` for which a checkpoint stops it,
    `restart` from a failure to the first new step."""

    mtbf: float
    save: float
    restart: float = RESTART_SECONDS

    def __post_init__(self) -> None:
        for name in ("mtbf", "save"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number of seconds")
        if not 0 <= self.restart < math.inf:
            raise ValueError("a restart must take a number of seconds from 0 on")


def reliability(
    num_parameters: int,
    gpus: int,
    gpus_per_node: int = 8,
    *,
    gpu_hours_per_failure: float = GPU_HOURS_PER_FAILURE,
    save: float | None = None,
    restart: float = RESTART_SECONDS,
) -> Reliability:
    """That of so many GPUs; `save` by default as long as all nodes write a checkpoint together."""
    if gpus < 1:
        raise ValueError(f"{gpus} GPUs cannot run anything")
    if not gpu_hours_per_failure > 0:
        raise ValueError("the GPU-hours between failures must be positive")
    if save is None:
        nodes = -(-gpus // gpus_per_node)
        save = CHECKPOINT_BYTES_PER_PARAMETER * num_parameters / nodes / NODE_WRITE_BANDWIDTH
    return Reliability(gpu_hours_per_failure * HOUR / gpus, save, restart)


def young_interval(run: Reliability) -> float:
    """Seconds of work between checkpoints, Young's estimate: sqrt(2 save mtbf)."""
    return math.sqrt(2 * run.save * run.mtbf)


def daly_interval(run: Reliability) -> float:
    """Seconds of work between checkpoints, Daly's estimate (equation 37)."""
    x = run.save / (2 * run.mtbf)
    if x >= 1:
        return run.mtbf
    return young_interval(run) * (1 + math.sqrt(x) / 3 + x / 9) - run.save


def expected_seconds(work: float, interval: float, run: Reliability) -> float:
    """Wall time that `work` seconds of progress take on the mean, saving every `interval` of them.

    Daly's complete model (equation 20): M e^(R/M) (e^((t + d)/M) - 1) a piece of t seconds.
    Infinite where a piece is so much longer than `mtbf` that it will not end.
    """
    if not 0 < interval < math.inf:
        raise ValueError("the checkpoint interval must be a positive number of seconds")
    try:
        piece = math.exp(run.restart / run.mtbf) * math.expm1((interval + run.save) / run.mtbf)
    except OverflowError:
        return math.inf
    return run.mtbf * piece * work / interval


@dataclass(frozen=True, slots=True)
class FailurePlan:
    """`interval` seconds of work between checkpoints; the rest is of the whole run, on the mean.

    `goodput` the share of the wall time that is progress; `lost` seconds run again or waited for.
    """

    failures: float
    interval: float
    young: float
    wall: float
    saving: float
    lost: float
    goodput: float
    reliability: Reliability

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_failures(work: float, run: Reliability, interval: float | None = None) -> FailurePlan:
    """What failures make of `work` seconds; the best interval is used where none is given.

    ValueError where the run would never end.
    """
    best = daly_interval(run) if interval is None else interval
    best = min(best, work) if work > 0 else best
    wall = expected_seconds(work, best, run)
    if not wall < math.inf:
        raise ValueError(
            f"a failure every {run.mtbf:.0f} seconds and {run.restart:.0f} to start again: such a "
            "run does not end; use fewer GPUs, or save and start faster"
        )
    saving = work / best * run.save
    lost = wall - work - saving
    goodput = work / wall if wall else 1.0
    return FailurePlan(wall / run.mtbf, best, young_interval(run), wall, saving, lost, goodput, run)
