"""Checkpoint intervals and expected times, against a search and the papers' runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from puna.plan.failures import (
    RECORDS,
    Reliability,
    daly_interval,
    expected_seconds,
    plan_failures,
    reliability,
    young_interval,
)

RUNS = [Reliability(3600, 10, 60), Reliability(1e5, 30, 900), Reliability(2e6, 5, 0)]


def test_the_records_have_the_papers_rates() -> None:
    # 54 days, 419 interruptions: one every 3.1 hours
    llama3 = RECORDS["llama3"]
    assert llama3.hours_per_failure / llama3.gpus == pytest.approx(3.09, abs=0.01)
    assert llama3.hours_per_failure == pytest.approx(50_700, abs=50)


@pytest.mark.parametrize("run", RUNS)
def test_dalys_interval_is_the_best_of_a_search(run: Reliability) -> None:
    candidates = np.geomspace(run.save / 4, run.mtbf * 4, 20_000)
    times = [expected_seconds(1.0, float(interval), run) for interval in candidates]
    best = float(candidates[int(np.argmin(times))])
    assert daly_interval(run) == pytest.approx(best, rel=0.01)
    assert expected_seconds(1.0, daly_interval(run), run) <= min(times) * (1 + 1e-6)


def test_young_and_daly_meet_where_failures_are_rare() -> None:
    run = Reliability(1e9, 1.0)
    assert daly_interval(run) == pytest.approx(young_interval(run), rel=1e-3)
    assert young_interval(Reliability(50, 100)) == 100
    assert daly_interval(Reliability(50, 100)) == 50


def test_without_failures_only_saving_takes_time() -> None:
    plan = plan_failures(1e6, Reliability(1e15, 10, 900), interval=1000)
    assert plan.wall == pytest.approx(1e6 * 1.01)
    assert plan.saving == pytest.approx(1e4)
    assert plan.failures < 1e-8


def test_parts_add_up() -> None:
    plan = plan_failures(3e6, reliability(70_000_000_000, 2000))
    assert plan.wall == pytest.approx(3e6 + plan.saving + plan.lost)
    assert plan.goodput == pytest.approx(3e6 / plan.wall)
    assert plan.failures * plan.reliability.mtbf == pytest.approx(plan.wall)


def test_llama_3_s_effective_time_is_above_ninety_percent() -> None:
    run = reliability(405_000_000_000, 16_384)
    assert run.mtbf == pytest.approx(3.09 * 3600, rel=0.01)
    assert 0.85 < plan_failures(54 * 86400, run).goodput < 0.97


def test_a_run_that_cannot_end_is_refused() -> None:
    with pytest.raises(ValueError, match="does not end"):
        plan_failures(1e6, Reliability(1, 1, 10_000))
    with pytest.raises(ValueError, match="positive"):
        expected_seconds(1, 0, RUNS[0])
    with pytest.raises(ValueError, match="mtbf"):
        Reliability(math.nan, 1)
    with pytest.raises(ValueError, match="0 GPUs"):
        reliability(1, 0)
