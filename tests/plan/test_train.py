"""Plans of training runs."""

from __future__ import annotations

import pytest

from puna.config import preset
from puna.plan.hardware import Cluster, device
from puna.plan.train import TrainPlan


def test_hours_days_and_power_of_the_paper() -> None:
    """1,720,320 GPU-hours for 2T tokens through 70B are 323 tokens/s of a GPU, 36 days of 2000."""
    plan = TrainPlan(preset("70b"), 2e12, Cluster(device("a100-80g"), 2000), 322.94)
    assert plan.gpu_hours == pytest.approx(1_720_320, rel=1e-4)
    assert plan.days == pytest.approx(35.84, rel=1e-3)
    assert plan.mfu == pytest.approx(0.46, abs=0.001)
    assert plan.power == 800_000
