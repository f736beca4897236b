"""Measuring a machine, at small sizes: what comes out can be planned with."""

from __future__ import annotations

import time

import pytest

from puna.config import preset
from puna.engine.calibrate import Job, alternating, calibrate, last_cache, num_jobs
from puna.kernels import native
from puna.plan.machine import Machine
from puna.plan.serve import Setting, speed
from puna.plan.weights import weights


@pytest.mark.skipif(native.library() is None, reason="no native code was built")
def test_a_machine_is_measured() -> None:
    jobs: list[None] = []
    formats = ("q8_0",)
    machine = calibrate(1, formats, lambda: jobs.append(None), cache=1 << 20)
    assert len(jobs) == num_jobs(formats)
    assert set(machine.paces) == {1, machine.cores}
    for pace in machine.paces.values():
        assert pace.bandwidth > 1e8
        assert pace.cached["q8_0"] > 0 and pace.streamed["q8_0"] > 0
    assert Machine.from_dict(machine.to_dict()) == machine
    stored = weights(preset("tiny"), "q8_0")
    setting = Setting(preset("tiny"), stored, machine.device, context=64, prompt=8,
                      engine=machine.engine(preset("tiny"), stored))  # fmt: skip
    assert speed(setting, 1).each > 0


def test_bursts_of_processor_time_are_those_least_disturbed() -> None:
    waited = []

    def work() -> None:
        until = time.process_time() + 1e-3
        while time.process_time() < until:
            pass

    def rest() -> None:  # takes none
        waited.append(time.sleep(1e-3))

    worked, rested = alternating((Job(work), Job(rest)), 8, 1)
    assert worked >= 1e-3 > rested
    assert alternating((Job(work, rest),), 8, 2)[0] == pytest.approx(worked / 2, rel=0.5)
    assert len(waited) == 2 * 9  # before each, too


def test_a_cache_has_a_size() -> None:
    assert 1 << 17 <= last_cache() <= 1 << 32
