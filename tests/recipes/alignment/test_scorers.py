"""Reward models as functions of dialogs: what several say together."""

from __future__ import annotations

from puna.chat import Message
from puna.recipes.alignment.scorers import mean_of
from puna.train.sampling import Dialog


def test_the_mean_of_reward_models_is_answer_by_answer() -> None:
    dialogs: list[Dialog] = [[Message("user", "Hi.")], [Message("user", "Bye.")]]

    assert mean_of([lambda given: [1.0, -2.0], lambda given: [2.0, 5.0]])(dialogs) == [1.5, 1.5]
    assert mean_of([lambda given: [0.25, 3.0]])(dialogs) == [0.25, 3.0]
