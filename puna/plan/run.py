"""A planned run, simulated: its steps with slow ranks, and its days with failures; and how both
change with the number of devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from puna.config import ModelConfig
from puna.plan.compute import layer_seconds
from puna.plan.failures import (
    GPU_HOURS_PER_FAILURE,
    RESTART_SECONDS,
    Reliability,
    plan_failures,
    reliability,
)
from puna.plan.memory import layer_parameters
from puna.plan.schedule import run_layers
from puna.plan.search import Found, Run
from puna.plan.simulate import Spread, expected_maximum, simulate_runs, simulate_steps
from puna.plan.step import SPREAD, exchange
from puna.plan.train import SLOWEST, plan_train

_MOST_STAGES = 256  # and pieces, of a step that is played through
_MOST_TASKS = 50_000


@dataclass(frozen=True, slots=True)
class Shape:
    """How ranks share a step: `stages` of a pipeline, `ways` that share each matrix or window,
    `pieces` that a replica's share of the batch comes in, `chunks` of a stage."""

    stages: int = 1
    ways: int = 1
    pieces: int = 1
    schedule: str = "1f1b"
    chunks: int = 1

    def __post_init__(self) -> None:
        for name in ("stages", "ways", "pieces", "chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more")
        tasks = 2 * self.stages * self.pieces * self.chunks
        if self.stages > _MOST_STAGES or tasks > _MOST_TASKS:
            raise ValueError(f"{tasks:,} tasks a step are too many to play through")


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """`steps` of `step_seconds` on the mean, where equal ranks would take `ideal_seconds`;
    `bubble` and `slowest` as shares. Of the run: days `without_failures`, and on the mean and
    between 5 and 95 % of the simulated ones with them; `goodput` what is left of the time."""

    devices: int
    shape: Shape
    steps: int
    ideal_seconds: float
    step_seconds: float
    bubble: float
    slowest: float
    interval: float
    reliability: Reliability
    without_failures: float
    days: float
    days_low: float
    days_high: float
    failures: float
    expected_days: float
    goodput: float

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "simulation", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong: GPU-hours between failures, seconds to start again and to save (None: as
    long as the nodes write), and how ranks differ."""

    gpu_hours: float = GPU_HOURS_PER_FAILURE
    restart: float = RESTART_SECONDS
    save: float | None = None
    spread: Spread = field(default_factory=Spread)


def simulate_run(
    config: ModelConfig,
    tokens: float,
    batch_tokens: int,
    devices: int,
    per_node: int,
    tokens_per_second: float,
    shape: Shape,
    faults: Faults,
    seed: int = 0,
    runs: int = 200,
) -> SimulatedRun:
    """A run of a plan that trains at `tokens_per_second` a device when all ranks are equal and
    nothing fails.

    ValueError for shapes that the devices do not have, and runs that do not end.
    """
    if not 0 < tokens < math.inf or batch_tokens < 1:
        raise ValueError("a run has a number of tokens, and steps of some of them")
    if not SLOWEST < tokens_per_second < math.inf:
        raise ValueError(f"training at {tokens_per_second:g} tokens/s a device never ends")
    replicas, rest = divmod(devices, shape.stages * shape.ways)
    if rest or not replicas:
        raise ValueError(
            f"{devices} devices are not made of pipelines of {shape.stages} x {shape.ways}"
        )
    generator = np.random.default_rng(seed)
    steps = max(1, round(tokens / batch_tokens))
    ideal = tokens / steps / (tokens_per_second * devices)
    # So long are a piece's two passes through a stage, of which the backward one is twice the
    # forward one, that the step takes what the plan says.
    rounds = shape.pieces + (shape.stages - 1) / shape.chunks
    forward = np.full(shape.stages, ideal / rounds / 3)
    found = simulate_steps(
        forward,
        2 * forward,
        shape.pieces,
        replicas=replicas,
        ranks_per_stage=shape.ways,
        spread=faults.spread,
        generator=generator,
        schedule=shape.schedule,
        chunks=shape.chunks,
    )
    step = float(found.seconds.mean())
    run = reliability(
        config.num_parameters,
        devices,
        per_node,
        gpu_hours_per_failure=faults.gpu_hours,
        save=faults.save,
        restart=faults.restart,
    )
    expected = plan_failures(steps * step, run)
    played = simulate_runs(steps * step, expected.interval, run, generator, runs)
    low, high = played.between(0.05, 0.95)
    days = float(played.wall.mean()) / 86400
    return SimulatedRun(
        devices=devices,
        shape=shape,
        steps=steps,
        ideal_seconds=found.ideal,
        step_seconds=step,
        bubble=found.bubble,
        slowest=found.slowest,
        interval=expected.interval,
        reliability=run,
        without_failures=steps * step / 86400,
        days=days,
        days_low=low / 86400,
        days_high=high / 86400,
        failures=float(played.failures.mean()),
        expected_days=expected.wall / 86400,
        goodput=steps * step / 86400 / days,
    )


@dataclass(frozen=True, slots=True)
class Point:
    """A number of devices: tokens/s of all as planned, and with failures and slow ranks;
    `efficiency` the latter a device, over the most that any of the points plans a device."""

    devices: int
    planned: float
    simulated: float
    efficiency: float
    days: float
    layout: str


class Overlap(NamedTuple):
    """Seconds of a step in which FSDP gathers weights and scatters gradients: all, and those that
    computing does not hide, event by event."""

    all: float
    shown: float


class Healthy(NamedTuple):
    """The fastest layout while nothing fails and no rank is slower than the others: tokens/s a
    device, how ranks share a step, what the layout is called, its collectives, and the tokens of a
    step: as many of those asked for as divide over the ranks."""

    each: float
    shape: Shape
    layout: str
    overlap: Overlap
    batch_tokens: int


def healthy(run: Run) -> Healthy:
    """The fastest layout; ValueError, saying what would do, where none fits."""
    _, found = plan_train(run, 1.0)
    choice = found.choice
    layout = choice.layout
    shape = Shape(layout.pp, layout.tp * layout.cp, choice.num_pieces)
    slowest = SPREAD * expected_maximum(run.kernels.cluster.count)
    each = found.tokens_per_second * (1 + slowest)
    batch_tokens = choice.batch_size * run.model.context_length
    return Healthy(each, shape, str(layout), overlap(run, found), batch_tokens)


def overlap(run: Run, found: Found) -> Overlap:
    """A step's collectives, played through a layer at a time: forward, then backward.

    A pipeline's stages gather before their first piece and scatter after their last: all is shown.
    """
    config, choice, cluster = run.model, found.choice, run.kernels.cluster
    layout, layers = choice.layout, config.num_layers // choice.layout.pp
    sent = exchange(cluster, layout, layer_parameters(config) / layout.tp)
    if layout.pp > 1:
        every = layers * (sent.gather + sent.scatter + sent.add)
        return Overlap(every, every)
    times = layer_seconds(
        run.kernels, config, choice.micro_batch_size, layout.tp, layout.cp, choice.recompute
    )
    talk = (found.step.tensor + found.step.context) / (choice.num_pieces * layers)
    forward = times.forward + talk / 3
    backward = times.backward + times.again + talk * 2 / 3

    def shown(computing: float, scatter: float) -> float:
        whole = run_layers([computing] * layers, [sent.gather] * layers, [scatter] * layers)
        return whole - layers * computing

    pieces = choice.num_pieces
    every = layers * (pieces * (2 * sent.gather + sent.scatter) + sent.add)
    waited = pieces * shown(forward, 0.0) + (pieces - 1) * shown(backward, sent.scatter)
    return Overlap(every, waited + shown(backward, sent.scatter + sent.add))


# ValueError where nothing fits
PlanAt = Callable[[int], Healthy]


def scaling(
    config: ModelConfig,
    tokens: float,
    per_node: int,
    counts: Iterable[int],
    plan_at: PlanAt,
    faults: Faults,
    seed: int = 0,
    runs: int = 50,
) -> list[Point]:
    """A point for each number of devices that has a plan."""
    found = []
    for count in sorted(set(counts)):
        try:
            each, shape, layout, _, batch_tokens = plan_at(count)
            run = simulate_run(
                config, tokens, batch_tokens, count, per_node, each, shape, faults, seed, runs
            )
        except ValueError:  # no layout, or a run that does not end
            continue
        found.append((count, each, run, layout))
    best = max((each for _, each, _, _ in found), default=0.0)
    points = []
    for count, each, run, layout in found:
        simulated = tokens / run.days / 86400
        efficiency = simulated / count / best
        points.append(Point(count, each * count, simulated, efficiency, run.days, layout))
    return points
