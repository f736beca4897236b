"""When PPO ends, and which of its checkpoints is best: by the reward on held-out prompts.

`by` names another score of the held-out answers than what was trained on (`scores.Scores`): as the
paper had people judge, "gold" sees where more reward no longer is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from puna.formats.run_folder import steps_saved
from puna.train.log import Record, read_log

REWARD = "reward"


def best_evaluation(rewards: Sequence[float]) -> int:
    """The number of the highest reward, of equals the first; ValueError where there is none."""
    return max(range(len(rewards)), key=rewards.__getitem__)


def stops_early(rewards: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` evaluations are none above the best before them (0: never).

    Llama 2 ends by "early stopping" on held-out prompts after 200 to 400 iterations; the rule is
    *ours*.
    """
    return 0 < patience <= len(rewards) - 1 - best_evaluation(rewards) if rewards else False


def evaluations(run: Path, last: float = math.inf, by: str = REWARD) -> list[tuple[int, float]]:
    """Steps, 0 for the start, and the rewards on held-out prompts after them, of the log up to step
    `last`."""
    records = read_log(run / "log.jsonl")
    return [found for r in records if r["step"] <= last for found in evaluations_in(r, by)]


def best_step(run: Path, by: str = REWARD) -> int | None:
    """The step after which the reward on held-out prompts was highest, of those whose checkpoint is
    there and the start, 0; None where none were held out.

    `config.ppo_settings` keeps enough of them, unless `patience` is 0 or stops saved more.
    """
    kept = {0, *steps_saved(run)}
    found = [(step, reward) for step, reward in evaluations(run, by=by) if step in kept]
    return found[best_evaluation([reward for _, reward in found])][0] if found else None


def evaluations_in(record: Record, by: str = REWARD) -> list[tuple[int, float]]:
    """Those of a record: the first has the start's."""
    found = [(0, record["start"][by])] if "start" in record else []
    key = f"held_out_{by}"
    return found + ([(record["step"], record[key])] if key in record else [])
