"""Each stage of the alignment, killed while it works: what the same command makes of it.

A killed run is resumed to the bits of the run that nobody disturbed, as is a file of samples.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.formats.run_folder import checkpoint_path, steps_saved
from puna.tokenizer import Vocabulary
from puna.train.log import read_log
from tests.train.ppo.small_policy import PROMPTS, new_policy
from tests.train.ppo.test_command import new_reward_model as small_reward_model
from tests.train.preferences.reward_models import new_reward_model
from tests.train.preferences.runs import write_pairs, write_start
from tests.train.runs import weights
from tests.train.sft_runs import write_dialogs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
# Not the same each time.
MEASURED = {"tokens_per_second", "tflops", "mfu", "memory", "seconds", "rollout_seconds"}
Arguments = list[str | Path]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "puna", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def well(*arguments: str | Path) -> None:
    process = start(*arguments)
    _, said = process.communicate(timeout=250)
    assert process.returncode == 0, said


def killed(reached: Callable[[], bool], *arguments: str | Path) -> None:
    """Runs a command until `reached`, and kills it there."""
    process = start(*arguments)
    while process.poll() is None and not reached():
        time.sleep(0.005)
    process.kill()
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"over before it could be killed: {said}"


def records(run: Path) -> list[dict[str, object]]:
    """What the log says, but for the speed."""
    return [
        {key: value for key, value in record.items() if key not in MEASURED}
        for record in read_log(run / "log.jsonl")
    ]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def sft(folder: Path, vocabulary: Vocabulary) -> Arguments:
    model = write_start(folder / "start", vocabulary)
    dialogs = write_dialogs(folder / "dialogs.jsonl")
    return ["sft", dialogs, "-m", model, "--batch-size", "4", "--epochs", "20",
            "--checkpoint-every", "3"]  # fmt: skip


def reward(folder: Path, vocabulary: Vocabulary) -> Arguments:
    model, pairs = (
        write_start(folder / "start", vocabulary),
        write_pairs(folder / "pairs.jsonl", 200),
    )
    return ["reward", pairs, "-m", model, "--batch-size", "4", "--checkpoint-every", "3"]


def dpo(folder: Path, vocabulary: Vocabulary) -> Arguments:
    return ["dpo", *reward(folder, vocabulary)[1:]]


def ppo(folder: Path, vocabulary: Vocabulary) -> Arguments:
    model = new_policy(folder / "start", vocabulary)
    small_reward_model(model, folder / "reward", 0, vocabulary)
    asked = [
        {"messages": [{"role": "user", "content": prompt.messages[0].content}]}
        for prompt in PROMPTS
    ]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(each) + "\n" for each in asked))
    return ["ppo", "--model", model, "--reward", folder / "reward", "--prompts", prompts,
            "--iterations", "12", "--iteration-size", "16", "--batch-size", "8", "--max-tokens",
            "6", "--held-out", "4", "--eval-every", "2", "--patience", "100", "--learning-rate",
            "1e-3"]  # fmt: skip


@pytest.mark.parametrize("stage", [sft, reward, dpo, ppo], ids=lambda stage: stage.__name__)
def test_a_killed_run_resumes_to_the_same_bits(
    stage: Callable[[Path, Vocabulary], Arguments], tmp_path: Path, vocabulary: Vocabulary
) -> None:
    arguments = stage(tmp_path, vocabulary)
    whole, run = tmp_path / "whole", tmp_path / "run"
    well(*arguments, "--out", whole)
    steps = len(records(whole))
    assert steps > 12
    # Twice: soon after a checkpoint, and again far from the first time.
    killed(lambda: lines(run / "log.jsonl") >= 5, *arguments, "--out", run)
    killed(lambda: lines(run / "log.jsonl") >= 10, arguments[0], "--out", run, "--resume")
    assert steps_saved(run)[-1] < steps
    well(arguments[0], "--out", run, "--resume")
    assert records(run) == records(whole)
    assert weights(checkpoint_path(run, steps)) == weights(checkpoint_path(whole, steps))


def rejection_sampling(folder: Path) -> Arguments:
    model = new_reward_model(folder / "reward")
    return ["rejection-sampling", "--model", "cria", "--reward", model, "--samples", "3",
            "--max-tokens", "16"]  # fmt: skip


def gatt(folder: Path) -> Arguments:
    return ["gatt", "--model", "cria-chat", "--turns", "2", "--max-tokens", "16"]


@pytest.mark.parametrize("stage", [rejection_sampling, gatt], ids=lambda stage: stage.__name__)
def test_killed_sampling_goes_on_to_the_same_bytes(
    stage: Callable[[Path], Arguments], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    asked = [
        {"messages": [{"role": "user", "content": f"What is the capital of {name}?"}]}
        for name in ("France", "Peru", "Chad", "Oman", "Mali", "Cuba", "Iran", "Iraq") * 20
    ]
    prompts.write_text("".join(json.dumps(each) + "\n" for each in asked))
    arguments = [*stage(tmp_path), "--prompts", prompts]
    whole, out = tmp_path / "whole", tmp_path / "out"
    well(*arguments, "--out", whole)

    def begun() -> bool:
        return out.is_dir() and any(
            lines(path) > 0 for path in out.glob("*.jsonl") if path.name != "sft.jsonl"
        )

    killed(begun, *arguments, "--out", out)
    well(*arguments, "--out", out)
    made = sorted(path.name for path in whole.glob("*.jsonl"))
    assert "sft.jsonl" in made
    assert sorted(path.name for path in out.glob("*.jsonl")) == made
    for name in made:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
