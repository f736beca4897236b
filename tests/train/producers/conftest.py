"""What the tests of several producers' commands have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.preferences.reward_models import new_reward_model


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that nobody trained."""
    return new_reward_model(tmp_path_factory.mktemp("models") / "reward")
