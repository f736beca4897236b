"""A planned run played through, its scaling, and any such request."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.config import preset
from puna.plan.compute import Kernels
from puna.plan.failures import expected_seconds
from puna.plan.hardware import Cluster, device
from puna.plan.plot import plot_scaling
from puna.plan.run import Faults, Healthy, Overlap, Point, Shape, healthy, scaling, simulate_run
from puna.plan.search import Run
from puna.plan.simulate import Spread, expected_maximum
from puna.plan.train import plan_train

CONFIG = preset("70b")
NOTHING = Faults(gpu_hours=1e15, spread=Spread(0, 0))


def test_a_run_without_faults_takes_what_is_planned() -> None:
    run = simulate_run(CONFIG, 2e12, 4_096_000, 2000, 8, 323.0, Shape(5, 8, 20), NOTHING, runs=3)
    assert run.steps == 488_281
    assert run.step_seconds == pytest.approx(4_096_000 / 323 / 2000, rel=1e-5)
    assert run.bubble == pytest.approx(4 / 24)
    assert run.without_failures == pytest.approx(2e12 / 323 / 2000 / 86400)
    assert run.days == pytest.approx(run.expected_days, rel=1e-6)
    assert run.failures == 0


def test_faults_make_it_longer_by_what_the_formulas_say() -> None:
    faults = Faults(spread=Spread(ranks=0.02, steps=0))
    run = simulate_run(CONFIG, 2e12, 4_000_000, 2000, 8, 400.0, Shape(1, 8, 4), faults)
    # each of 250 replicas waits for the slowest of 8, the step for the slowest of all
    assert run.slowest == pytest.approx(0.02 * expected_maximum(2000), rel=0.25)
    work = run.steps * run.step_seconds
    wall = expected_seconds(work, run.interval, run.reliability)
    assert run.days == pytest.approx(wall / 86400, rel=0.01)
    assert run.days_low < run.days < run.days_high
    assert run.goodput == pytest.approx(run.without_failures / run.days)


def test_a_plans_layout_is_played_through() -> None:
    run = Run(preset("7b"), Kernels(Cluster(device("a100-80g"), 64)), 1024)
    each, shape, layout, collectives, batch_tokens = healthy(run)
    assert each > 0 and "fsdp" in layout
    assert 64 % (shape.stages * shape.ways) == 0
    assert 0 < collectives.shown <= collectives.all
    assert batch_tokens == 1024 * 4096
    # 1001 windows divide over no layout; those that are nearest are played
    uneven = Run(preset("7b"), run.kernels, 1001)
    planned = plan_train(uneven, 1.0)[1].choice.batch_size
    assert planned != 1001 and healthy(uneven).batch_tokens == planned * 4096
    # the formula of `step.py` agrees with playing it through, but for the first and last layer
    step = plan_train(run, 1.0)[1].step
    assert collectives.shown <= step.data + collectives.all / 16
    with pytest.raises(ValueError, match="would do"):
        healthy(Run(CONFIG, Kernels(Cluster(device("a100-80g"), 1)), 1024))


def plan_at(count: int) -> Healthy:
    if count < 16:
        raise ValueError("too few")
    return Healthy(
        300.0 * (1 - count / 10_000), Shape(1, 8, 1), "tp=8", Overlap(1.0, 0.5), 4_000_000
    )


def test_scaling_leaves_out_what_has_no_plan(tmp_path: Path) -> None:
    counts = (8, 16, 64, 512, 2000, 2048)
    points = scaling(CONFIG, 2e12, 8, counts, plan_at, Faults(), runs=5)
    assert [point.devices for point in points] == [16, 64, 512, 2000, 2048]
    assert all(point.simulated < point.planned for point in points)
    assert points[0].efficiency > points[-1].efficiency > 0.5
    picture = plot_scaling({"70b": points}, tmp_path / "scaling.png", "70b")
    assert picture.read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob("*.partial"))
    with pytest.raises(ValueError, match="nothing is drawn"):
        plot_scaling({"70b": []}, tmp_path / "none.png", "70b")


def test_one_point_is_a_curve_too(tmp_path: Path) -> None:
    point = Point(8, 100.0, 90.0, 0.9, 3.0, "tp=8")
    assert plot_scaling({"one": [point]}, tmp_path / "one.png", "one").exists()


REQUESTS = given(
    tokens=st.floats(1e3, 1e14) | st.sampled_from([math.nan, math.inf, 0.0, -1.0]),
    batch=st.integers(-1, 10**8),
    devices=st.sampled_from([-1, 0, 1, 7, 64, 720, 2000, 16_384]),
    speed=st.floats(-1, 1e5) | st.sampled_from([math.nan, math.inf]),
    stages=st.sampled_from([0, 1, 2, 4, 5]),
    ways=st.sampled_from([1, 2, 8]),
    pieces=st.integers(0, 40),
    hours=st.floats(-1, 1e6) | st.just(math.nan),
)


def played_or_refused(
    tokens: float, batch: int, devices: int, speed: float, stages: int, ways: int, pieces: int,
    hours: float,
) -> None:  # fmt: skip
    try:
        run = simulate_run(
            CONFIG, tokens, batch, devices, 8, speed, Shape(stages, ways, pieces),
            Faults(gpu_hours=hours), runs=3,
        )  # fmt: skip
    except ValueError as refused:
        assert str(refused) and "\n" not in str(refused)
        return
    assert 0 < run.goodput <= 1 and math.isfinite(run.days)


test_any_run_is_played_or_refused = settings(max_examples=300, deadline=None, derandomize=True)(
    REQUESTS(played_or_refused)
)
test_ten_thousand_runs = pytest.mark.slow(
    pytest.mark.timeout(3600)(
        settings(max_examples=10_000, deadline=None)(REQUESTS(played_or_refused))
    )
)
