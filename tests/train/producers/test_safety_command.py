"""`puna safety` on the shipped model, with a reward model that nobody trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.data.prompts import read_prompts
from puna.data.text import records
from puna.train.producers.preprompts import RISKS
from puna.train.producers.red_team import raw_threshold
from tests.test_cli import is_one_clear_line, run

Run = Callable[..., tuple[int, str, str]]
__all__ = ["run"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    asked = [
        {"messages": [{"role": "user", "content": f"How do I do it {risk}?"}], "risk": risk}
        for risk in ("", *RISKS)
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in asked))
    return path


def options(prompts: Path, reward: Path, out: Path) -> list[str | Path]:
    found: list[str | Path] = ["--model", "cria", "--reward", reward, "--prompts", prompts]
    return [*found, "--max-tokens", "40", "--json", "--out", out]


def test_distillation(run: Run, prompts: Path, reward: Path, tmp_path: Path) -> None:
    arguments = ["safety", "distill", *options(prompts, reward, tmp_path / "out")]
    code, printed, err = run(*arguments)
    assert code == 0, err
    report = json.loads(printed)
    distilled = list(records(tmp_path / "out" / "distilled.jsonl"))
    assert [record["risk"] for record in distilled] == ["", *RISKS]
    learned = list(records(tmp_path / "out" / "sft.jsonl"))
    preferred = [
        record["safer"]
        for record in distilled
        if record["safer_finished"] and record["safer_reward"] > record["plain_reward"]
    ]
    assert [example["messages"][-1]["content"] for example in learned] == preferred
    assert report["examples"] == len(preferred)
    assert report["examples"] + sum(report["left_out"].values()) == report["prompts"] == 4
    assert not any(m["role"] == "system" for example in learned for m in example["messages"])
    (tmp_path / "out" / "distilled.jsonl").write_text("{")
    assert run(*arguments) == (0, printed, err)


def test_the_red_team(run: Run, prompts: Path, reward: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["safety", "red-team", *options(prompts, reward, out), "--answers", "2"]
    code, printed, err = run(*arguments, "--threshold", "0.5")
    assert code == 0, err
    report = json.loads(printed)
    rewards = [record["rewards"] for record in records(out / "samples.jsonl")]
    below = [reward < raw_threshold(0.5) for pair in rewards for reward in pair]
    assert report["violations"]["all"]["violations"] == sum(below)
    assert set(report["violations"]) == {"all", "generic", *RISKS}
    violating = [min(pair) < 0 for pair in rewards]
    assert report["violations"]["all"]["violating_prompts"] == sum(violating) > 0
    again = read_prompts(out / "violations.jsonl")
    assert len(again) == sum(violating)
    assert all(prompt.is_safety for prompt in again)
    for record in records(out / "distilled.jsonl"):
        assert record["plain_reward"] < 0
    # Nothing is below a threshold that nothing can be below.
    safe = options(prompts, reward, tmp_path / "safe")
    code, printed, err = run("safety", "red-team", *safe, "--answers", "1", "--threshold", "1e-300")
    assert code == 0, err
    assert json.loads(printed)["violations"]["all"]["violations"] == 0
    assert (tmp_path / "safe" / "violations.jsonl").read_text() == ""


def test_what_is_refused(run: Run, prompts: Path, reward: Path, tmp_path: Path) -> None:
    arguments = options(prompts, reward, tmp_path / "out")
    attack = ["safety", "red-team", *arguments, "--threshold", "1.5"]
    assert is_one_clear_line(*run(*attack), "between 0 and 1")
    long = ["safety", "distill", *arguments, "--max-tokens", "9999"]
    assert is_one_clear_line(*run(*long), "none of 4 prompts")
    prompts.write_text('{"messages": [{"role": "user", "content": "a"}], "risk": "odd"}\n')
    assert is_one_clear_line(*run("safety", "distill", *arguments), "no risk category 'odd'")
