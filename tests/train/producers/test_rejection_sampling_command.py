"""`puna rejection-sampling` on the shipped model, with reward models that nobody trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.chat import Message
from puna.data.instructions import dialogs
from puna.data.text import records
from puna.formats.network import as_checkpoint
from puna.tokenizer import Vocabulary
from puna.train.scoring import open_scorer
from tests.samples import random_model, small_config
from tests.test_cli import is_one_clear_line, run
from tests.train.preferences.reward_models import new_reward_model

Run = Callable[..., tuple[int, str, str]]
__all__ = ["run"]

QUESTIONS = ("What is the capital of France?", "Where is Peru?", "Who?", "What is Oslo?")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    asked: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": question}], "is_safety": question == "Who?"}
        for question in QUESTIONS
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in asked))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return list(records(path))


def test_winners_of_the_shipped_model(
    run: Run, prompts: Path, reward: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v1"
    arguments = ["rejection-sampling", "--model", "cria", "--reward", reward, "--prompts", prompts]
    arguments += ["--samples", "3", "--max-tokens", "24", "--json", "--out", out]
    code, printed, err = run(*arguments)
    assert code == 0, err
    report = json.loads(printed)
    assert report == json.loads((out / "report.json").read_text())
    assert (report["prompts"], report["too_long"]) == (4, 0)
    assert report["winners"] == report["examples"] == len(read(out / "sft.jsonl")) > 0
    assert report["winners"] + report["no_whole_answer"] == 4
    sampled, scorer = read(out / "samples.jsonl"), open_scorer(reward)
    for record in sampled:
        pairs = [
            [Message("user", record["messages"][0]["content"]), Message("assistant", answer)]
            for answer in record["answers"]
        ]
        assert record["rewards"] == pytest.approx(scorer(pairs), abs=1e-4)
    best = [max(record["rewards"]) for record in sampled]
    assert report["reward_of_the_best"] == pytest.approx(sum(best) / 4)
    assert [dialog.learned[-1] for dialog in dialogs(out / "sft.jsonl")] == [True] * len(
        read(out / "sft.jsonl")
    )
    assert (out / "best_of.png").is_file()
    # Broken off in the middle of a chunk, it ends the same.
    whole = (out / "samples.jsonl").read_bytes()
    (out / "samples.jsonl").write_bytes(whole[: len(whole) // 2])
    assert run(*arguments) == (0, printed, err)
    assert (out / "samples.jsonl").read_bytes() == whole
    again = run(*arguments, "--temperature", "0.5")
    assert is_one_clear_line(*again, "temperature was 1.0, is 0.5")


def test_a_temperature_is_chosen_and_winners_are_pooled(
    run: Run, prompts: Path, reward: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    won = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (earlier / "winners.jsonl").write_text(json.dumps(won) + "\n")
    out = tmp_path / "v4"
    arguments = ["rejection-sampling", "--model", "cria", "--reward", reward, "--prompts", prompts]
    arguments += ["--safety-reward", reward, "--samples", "2", "--max-tokens", "24", "--json"]
    arguments += ["--temperatures", "1.4,0.6", "--pilot", "2", "--out", out]
    arguments += ["--pool", earlier] * 3
    code, printed, err = run(*arguments)
    assert code == 0, err
    report, curves = json.loads(printed), json.loads((out / "curves.json").read_text())
    best = {float(each): curve["max"][-1] for each, curve in curves.items()}
    assert set(best) == {0.6, 1.4}
    assert report["temperature"] == max(best, key=best.__getitem__)
    assert report["version"] == 4
    assert report["examples"] == report["winners"] + 1
    assert read(out / "sft.jsonl")[0] == won
    assert len(read(out / "pilot-0.6.jsonl")) == 2
    # One model is both: the switch then changes nothing.
    record = read(out / "samples.jsonl")[2]
    dialog = [Message("user", "Who?"), Message("assistant", record["answers"][0])]
    assert record["rewards"][0] == pytest.approx(open_scorer(reward)([dialog])[0], abs=1e-4)


def test_what_is_refused(
    run: Run, prompts: Path, reward: Path, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    out = tmp_path / "out"
    base = ["rejection-sampling", "--model", "cria", "--prompts", prompts, "--out", out]

    def refused(
        *words: str, reward: Path | str = reward, more: tuple[str | Path, ...] = ()
    ) -> bool:
        return is_one_clear_line(*run(*base, "--reward", reward, *more), *words)

    assert refused("--samples must be 1 or more", more=("--samples", "0"))
    assert refused("give one", more=("--temperature", "1", "--temperatures", "1,2"))
    assert refused("commas between", more=("--temperatures", "1;2"))
    assert refused("no winners.jsonl", more=("--pool", tmp_path))
    assert refused("holds other things (prompts.jsonl)", more=("--out", tmp_path))
    assert refused("none of 4 prompts", more=("--max-tokens", "9999"))
    assert refused("no score head", reward="cria")
    network = random_model(small_config(vocab_size=420))
    foreign = as_checkpoint(network, tmp_path, vocabulary)
    other = new_reward_model(tmp_path / "other", of=foreign)
    assert refused("another vocabulary", reward=other)
    broken = new_reward_model(tmp_path / "broken", weight=math.nan)
    assert refused("no number", reward=broken)
    prompts.write_text("")
    assert refused("no prompts")
