"""The simulation against closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from puna.plan.failures import Reliability, expected_seconds
from puna.plan.schedule import Task, run_layers, run_pipeline
from puna.plan.simulate import Spread, expected_maximum, simulate_runs, simulate_steps

SHAPES = [(1, 4), (2, 2), (4, 8), (8, 8), (8, 32), (5, 3)]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "pieces"), SHAPES)
def test_the_bubble_of_equal_stages(schedule: str, stages: int, pieces: int) -> None:
    timeline = run_pipeline(schedule, np.full(stages, 1.0), np.full(stages, 2.0), pieces)
    assert timeline.bubble == pytest.approx((stages - 1) / (pieces + stages - 1))
    assert timeline.total == pytest.approx(3 * (pieces + stages - 1))


@pytest.mark.parametrize(("stages", "pieces", "chunks"), [(4, 8, 2), (2, 4, 3), (8, 16, 4)])
def test_chunks_make_the_bubble_smaller(stages: int, pieces: int, chunks: int) -> None:
    times = np.full(stages, 1.0), np.full(stages, 2.0)
    timeline = run_pipeline("interleaved", *times, pieces, chunks=chunks)
    assert timeline.bubble == pytest.approx((stages - 1) / (chunks * pieces + stages - 1))


def test_a_stage_does_one_thing_at_a_time_and_in_order() -> None:
    generator = np.random.default_rng(0)
    times = generator.uniform(1, 2, 4), generator.uniform(1, 2, 4)
    timeline = run_pipeline("1f1b", *times, 6, transfer=0.3)
    for stage in range(4):
        spans = sorted(
            (float(timeline.begins[t]), float(timeline.ends[t]))
            for t in timeline.ends
            if t.stage == stage
        )
        assert len(spans) == 12
        assert all(a[1] <= b[0] + 1e-12 for a, b in pairwise(spans))
    for piece in range(6):
        assert (
            timeline.begins[Task(False, 2, 0, piece)]
            >= timeline.ends[Task(False, 1, 0, piece)] + 0.3
        )
        assert (
            timeline.begins[Task(True, 1, 0, piece)] >= timeline.ends[Task(True, 2, 0, piece)] + 0.3
        )


def test_one_slow_stage_sets_the_pace() -> None:
    times = np.array([1.0, 1.5, 1.0, 1.0])
    timeline = run_pipeline("1f1b", times, times, 200)
    assert timeline.total / 200 == pytest.approx(3.0, rel=0.02)


def test_what_a_schedule_cannot_do_is_refused() -> None:
    ones = np.ones(4)
    with pytest.raises(ValueError, match="multiples of 4"):
        run_pipeline("interleaved", ones, ones, 6, chunks=2)
    with pytest.raises(ValueError, match="no schedule 'zigzag'"):
        run_pipeline("zigzag", ones, ones, 6)
    with pytest.raises(ValueError, match="chunks"):
        run_pipeline("1f1b", ones, ones, 6, chunks=2)


def test_collectives_hide_behind_longer_layers() -> None:
    layers = 10
    none = [0.0] * layers
    assert run_layers([2.0] * layers, none, none) == 20
    # only the first gather shows
    assert run_layers([2.0] * layers, [0.5] * layers, none) == pytest.approx(20.5)
    # and the last scatter
    assert run_layers([2.0] * layers, [0.5] * layers, [0.75] * layers) == pytest.approx(21.25)
    # gathers longer than layers set the pace
    assert run_layers([1.0] * layers, [3.0] * layers, none) == pytest.approx(31)
    both = run_layers([1.0] * layers, [3.0] * layers, [2.0] * layers)
    assert both == pytest.approx(3 * layers + 2 * layers, abs=1.5)


@pytest.mark.parametrize("count", [2, 10, 100, 2000])
def test_the_slowest_of_many_ranks(count: int) -> None:
    drawn = np.random.default_rng(1).standard_normal((1000, count)).max(axis=1)
    assert expected_maximum(count) == pytest.approx(drawn.mean(), abs=0.05)


def test_steps_wait_for_the_slowest_of_all_ranks() -> None:
    found = simulate_steps(
        np.ones(1),
        np.ones(1) * 2,
        1,
        replicas=250,
        ranks_per_stage=8,
        spread=Spread(ranks=0, steps=0.01),
        generator=np.random.default_rng(0),
        steps=200,
    )
    assert found.ideal == 3
    assert found.slowest == pytest.approx(0.01 * expected_maximum(2000), rel=0.03)


def test_equal_ranks_take_the_ideal_time() -> None:
    found = simulate_steps(
        np.ones(4), np.ones(4) * 2, 8, replicas=3, ranks_per_stage=2, others=1.5,
        spread=Spread(0, 0), generator=np.random.default_rng(0), steps=2,
    )  # fmt: skip
    assert found.seconds == pytest.approx([34.5, 34.5])
    assert found.slowest == pytest.approx(0)
    assert found.bubble == pytest.approx(3 / 11)


@pytest.mark.parametrize(
    "run", [Reliability(3600, 20, 120), Reliability(1e5, 60, 900), Reliability(500, 30, 200)]
)
def test_runs_take_the_time_that_daly_expects(run: Reliability) -> None:
    work, interval = 200_000.0, 400.0
    found = simulate_runs(work, interval, run, np.random.default_rng(0), runs=400)
    error = found.wall.std() / np.sqrt(400)
    assert found.wall.mean() == pytest.approx(expected_seconds(work, interval, run), abs=4 * error)
    assert found.failures.mean() == pytest.approx(found.wall.mean() / run.mtbf, rel=0.05)


def test_a_simulation_is_its_seed_s() -> None:
    run = Reliability(3600, 20, 120)
    walls = [
        simulate_runs(1e5, 500, run, np.random.default_rng(seed), runs=5).wall for seed in (3, 3, 4)
    ]
    assert (walls[0] == walls[1]).all() and (walls[0] != walls[2]).any()


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        Spread(ranks=-1)
    with pytest.raises(ValueError, match="positive"):
        simulate_runs(0, 1, Reliability(1, 1), np.random.default_rng(0))
    with pytest.raises(ValueError, match="too many to play through"):
        simulate_runs(1e6, 10, Reliability(2, 5, 900), np.random.default_rng(0))
