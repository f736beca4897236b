"""`puna ppo` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from puna.chat import Message
from puna.cli import puna
from puna.formats import huggingface, open_checkpoint
from puna.formats.network import as_checkpoint, load_model
from puna.formats.run_folder import checkpoint_path
from puna.heads import attach
from puna.tokenizer import Vocabulary
from puna.tokenizer.train import train as train_tokenizer
from puna.train.ppo.config import PPOConfig
from puna.train.ppo.scores import by_beginning
from puna.train.run_config import read_config
from puna.train.sampling import Dialog
from tests.samples import story_lines
from tests.train.ppo.small_policy import PROMPTS, letters, new_policy
from tests.train.test_several import torchrun

SMALL = [
    "--iterations", "2", "--iteration-size", "16", "--batch-size", "8", "--micro-batch-size", "4",
    "--max-tokens", "6", "--held-out", "4", "--eval-every", "1", "--learning-rate", "1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    """A policy `start`, reward models `helpful` and `safe`, `prompts.jsonl`."""
    folder = tmp_path_factory.mktemp("ppo")
    new_policy(folder / "start", vocabulary)
    for seed, name in enumerate(("helpful", "safe")):
        new_reward_model(folder / "start", folder / name, seed, vocabulary)
    lines = [
        {"messages": [{"role": "user", "content": prompt.messages[0].content}]}
        | {"is_safety": prompt.is_safety}
        for prompt in PROMPTS
    ]
    lines.append({"messages": [{"role": "user", "content": "too long " * 40}]})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def new_reward_model(start: Path, path: Path, seed: int, vocabulary: Vocabulary) -> None:
    network = load_model(open_checkpoint(start))
    attach(network, "score")
    with torch.no_grad():
        score = network.get_submodule("score").get_parameter("weight")
        score.normal_(std=0.2, generator=torch.Generator().manual_seed(seed))
    huggingface.write(as_checkpoint(network, path, vocabulary), path)


def run(folder: Path, *more: str, **changes: str) -> Result:
    said = {"model": "start", "prompts": "prompts.jsonl", "reward": "helpful"} | changes
    options = [
        x
        for name, value in said.items()
        for x in (f"--{name.replace('_', '-')}", str(folder / value))
    ]
    return CliRunner().invoke(puna, ["ppo", *options, *SMALL, *more])


def test_it_trains_and_names_the_best(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(folder, "--out", str(out), "--json", safety_reward="safe")
    assert done.exit_code == 0, done.exception
    assert "note: 1 prompts left out: no room for an answer of 6 tokens" in done.stderr
    said = json.loads(done.stdout)
    assert said["finished"] and said["steps"] == 4
    rewards = {int(step): reward for step, reward in said["held_out_rewards"].items()}
    assert set(rewards) == {0, 2, 4} and rewards[said["best_step"]] == max(rewards.values())
    assert open_checkpoint(Path(said["best"])).config == open_checkpoint(folder / "start").config
    assert (out / "ppo.png").stat().st_size > 10_000
    record = json.loads((out / "log.jsonl").read_text().splitlines()[0])
    assert {"helpfulness", "safety", "reward"} <= record.keys()
    assert record["reward"] not in (record["helpfulness"], record["safety"])  # some of each count
    assert "reward " in done.stderr and "KL " in done.stderr and "held out " in done.stderr
    # What it writes talks, and is a start or a reward model's start itself.
    assert open_checkpoint(checkpoint_path(out, 4)).chat_template is not None
    # Its config has all to go on with, and nothing else may be said.
    config = read_config(out, PPOConfig)
    assert config.helpfulness == str(folder / "helpful") and config.beta == 0.01
    again = CliRunner().invoke(puna, ["ppo", "--out", str(out), "--resume", "--json"])
    assert again.exit_code == 0 and json.loads(again.stdout) == said
    (out / "config.json").write_text(
        (out / "config.json").read_text().replace(config.scorer_digest, "another")
    )
    other = CliRunner().invoke(puna, ["ppo", "--out", str(out), "--resume"])
    assert "the reward models of" in str(other.exception)
    wrong = CliRunner().invoke(puna, ["ppo", "--out", str(out), "--resume", "--beta", "0"])
    assert "a resumed run keeps its own config: leave out beta" in str(wrong.exception)


def test_what_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "run")
    other = train_tokenizer(story_lines(300)[::-1], vocab_size=420, num_threads=1)
    new_reward_model(folder / "start", tmp_path / "foreign", 0, other)
    cases = {
        "is a reward model of another vocabulary": {"reward": str(tmp_path / "foreign")},
        "is no reward model: it has no score head": {"safety_reward": "start"},
        "no such file or folder": {"model": "nowhere"},
    }
    for words, changes in cases.items():
        assert words in str(run(folder, "--out", out, **changes).exception)
    assert "is no multiple of the batch size" in str(
        run(folder, "--out", out, "--iteration-size", "20").exception
    )
    if not torch.cuda.is_available():
        assert "finds no GPU" in str(run(folder, "--out", out, "--device", "cuda").exception)
    alone = CliRunner().invoke(puna, ["ppo", "--out", out])
    assert "give --model, --prompts and --reward" in str(alone.exception)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "there are 2 processes; say how they share the work" in str(
        run(folder, "--out", out).exception
    )
    assert not Path(out).exists()


def test_an_answer_that_does_not_fit_is_scored_by_its_beginning() -> None:
    seen: list[str] = []

    def scorer(dialogs: Sequence[Dialog]) -> list[float]:
        seen.extend(dialog[-1].content for dialog in dialogs)
        return letters(dialogs)

    def dialog(text: str) -> list[Message]:
        return [Message("user", "q"), Message("assistant", text)]

    short = by_beginning(scorer, lambda dialog: len(dialog[-1].content) <= 5)
    assert short([dialog("banana split"), dialog("bat")]) == [2.0, 1.0]
    assert seen == ["bana", "bat"]
    with pytest.raises(ValueError, match="a prompt does not fit the reward model's context: 'q'"):
        by_beginning(scorer, lambda dialog: False)([dialog("banana")])


@pytest.mark.slow
def test_two_processes_train_and_go_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = ["--model", folder / "start", "--prompts", folder / "prompts.jsonl", "--reward",
             folder / "helpful", "--safety-reward", folder / "safe", *SMALL]  # fmt: skip
    begun = torchrun("puna", "ppo", *asked, "--out", out, "--parallel", "fsdp=*", "--json")
    assert begun.returncode == 0, begun.stderr
    said = json.loads(begun.stdout)
    assert said["finished"] and said["steps"] == 4
    assert begun.stderr.count("left out: no room for an answer") == 1
    assert read_config(out, PPOConfig).settings.parallel == "fsdp=2"
    alone = run(folder, "--out", str(tmp_path / "alone"), "--json", safety_reward="safe")
    rewards = json.loads(alone.stdout)["held_out_rewards"]
    assert said["held_out_rewards"] == pytest.approx(rewards, abs=1e-5)
    # One process is told that two began it, and goes on where it is told to.
    refused = CliRunner().invoke(puna, ["ppo", "--out", str(out), "--resume"])
    assert "torchrun --nproc-per-node 2" in str(refused.exception)
    again = torchrun("puna", "ppo", "--out", out, "--resume", "--parallel", "dp=2", "--json")
    assert again.returncode == 0 and json.loads(again.stdout) == said
    twice = torchrun("puna", "ppo", *asked, "--out", out, "--parallel", "fsdp=2")
    assert twice.returncode and twice.stderr.count("exists already; give --resume") == 1
