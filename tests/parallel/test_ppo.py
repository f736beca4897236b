"""PPO in several processes is that of one: the same answers, scores, losses and weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.formats import open_checkpoint
from puna.formats.run_folder import checkpoint_path, steps_saved
from puna.tokenizer import Vocabulary
from puna.train.log import read_log
from puna.train.ppo.experience import experience_path, read_experience
from puna.train.ppo.run import ppo
from puna.train.ppo.scores import Scorers
from puna.train.sampling import Dialog
from tests.parallel.pool import Pool
from tests.train.ppo.small_policy import letters, new_policy, new_run

OPTIONS: dict[str, Any] = {"iterations": 2, "evaluate_every": 1, "checkpoint_every": 1}


def together(run: Path, layout: str | None) -> list[int]:
    """How many answers this process scored, call by call."""
    scored: list[int] = []

    def scorer(dialogs: Sequence[Dialog]) -> list[float]:
        scored.append(len(dialogs))
        return letters(dialogs)

    assert ppo(run, Scorers(scorer, gold=letters), parallel=layout, hang_timeout=0)
    return scored


def broken(run: Path) -> str:
    """What a process says where another's reward model gives what is no number."""
    import torch.distributed as dist

    reward = float("nan") if dist.get_rank() == 2 else 1.0
    with pytest.raises(ValueError) as caught:
        ppo(run, Scorers(lambda dialogs: [reward] * len(dialogs)), hang_timeout=0)
    return str(caught.value)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    return new_policy(tmp_path_factory.mktemp("policy") / "start", vocabulary)


def weights(run: Path, step: int) -> dict[str, np.ndarray]:
    tensors = open_checkpoint(checkpoint_path(run, step)).tensors
    return {name: tensor.read_float32() for name, tensor in tensors.items()}


def assert_alike(run: Path, single: Path) -> None:
    ours, theirs = (read_log(path / "log.jsonl") for path in (run, single))
    assert len(ours) == len(theirs) == 4
    figures = ("loss", "grad_norm", "tokens", "policy_loss", "value_loss", "entropy", "reward",
               "gold", "kl", "answer_tokens", "finished", "clip_fraction")  # fmt: skip
    for own, other in zip(ours, theirs, strict=True):
        for name in figures:
            assert own[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
        assert own["agreement"] < 1e-4 and "error" not in own
        assert own.get("held_out_reward") == other.get("held_out_reward")
    assert ours[0]["start"] == pytest.approx(theirs[0]["start"])
    for name, values in weights(run, 4).items():
        np.testing.assert_allclose(values, weights(single, 4)[name], atol=2e-5)


@pytest.mark.parametrize("layout", ["fsdp=4", pytest.param("dp=2 fsdp=2", marks=pytest.mark.slow)])
def test_several_processes_give_what_one_gives(
    tmp_path: Path, start: Path, four: Pool, layout: str
) -> None:
    single = new_run(tmp_path / "single", start, **OPTIONS)
    assert sum(together(single, None)) == 3 * 4 + 2 * 16
    run = new_run(tmp_path / "run", start, **OPTIONS)
    scored = four.run(together, run, layout, timeout=120)
    # Each scored a quarter of the held-out answers, and of those of an iteration.
    assert scored == [[1, 4, 1, 4, 1]] * 4
    assert_alike(run, single)
    ours, theirs = (read_experience(experience_path(path, 0)) for path in (run, single))
    assert ours.tokens.ids.equal(theirs.tokens.ids)
    np.testing.assert_allclose(ours.advantages, theirs.advantages, atol=1e-4)

    # In the middle of an iteration one process goes on, and several with what one began.
    for there, layout_after in ((run, ""), (single, layout)):
        moved = tmp_path / f"moved {there.name}"
        shutil.copytree(there, moved)
        shutil.rmtree(checkpoint_path(moved, 4))
        shutil.rmtree(checkpoint_path(moved, 2), ignore_errors=True)
        assert max(steps_saved(moved)) == 3
        if layout_after:
            assert four.run(together, moved, layout_after, timeout=120) == [[1]] * 4
        else:
            assert together(moved, "") == [4]
        assert_alike(moved, single)


def test_what_one_process_finds_wrong_all_say(tmp_path: Path, start: Path, four: Pool) -> None:
    run = new_run(tmp_path / "run", start, parallel="fsdp=4", micro_batch_size=2)
    said = four.run(broken, run, timeout=120)
    assert len(set(said)) == 1 and "helpfulness: the reward model gave nan" in said[0]
    assert not steps_saved(run)
