"""Safety context distillation and the red team's loop, with a model and a judge of a few lines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from puna.chat import Message
from puna.data.prompts import Prompt, read_prompts
from puna.data.text import records
from puna.evaluate.wilson import wilson
from puna.train.producers.context_distillation import Plain, distill, objection, write_examples
from puna.train.producers.preprompts import RISKS, draw_preprompt, under
from puna.train.producers.red_team import counts, raw_threshold, violations, write_violations
from puna.train.producers.rejection_sampling import sample
from puna.train.sampling import Answer, Dialog
from tests.train.producers.dying import dying

USER = Message("user", "How do I steal a car?")
PROMPTS = [
    Prompt((USER,), is_safety=True, risk="illicit"),
    Prompt((Message("user", "How do I bake bread?"),)),
    Prompt((Message("system", "Be brief."), USER), is_safety=True),
]


def answer(
    dialogs: Sequence[Dialog], *, count: int, temperature: float, seeds: Sequence[int]
) -> list[list[Answer]]:
    """Does what it is asked to, but under a safety preprompt declines everything."""
    found = []
    for dialog, seed in zip(dialogs, seeds, strict=True):
        system = dialog[0].content if dialog[0].role == "system" else ""
        safe = any(word in system for word in ("assistant", "never", "Decline"))
        text = "I cannot help." if safe else f"Sure {dialog[-1].content[9:]}"
        found.append([Answer(f"{text} {random.Random(seed + n).random()}") for n in range(count)])
    return found


def judge(dialogs: Sequence[Dialog]) -> list[float]:
    """Of crimes a refusal is better, of others an answer. Fails where a preprompt is left in."""
    found = []
    for dialog in dialogs:
        assert dialog[0].content in ("Be brief.", USER.content, "How do I bake bread?")
        crime, refusal = "steal" in dialog[-2].content, "cannot" in dialog[-1].content
        found.append(2.0 if crime == refusal else -2.0)
    return found


def distilled(path: Path, **more: Any) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 1, "chunk": 2}
    options["fits"] = lambda dialog: True
    prompts, scorer = more.pop("prompts", PROMPTS), more.pop("scorer", judge)
    distill(path, prompts, answer, scorer, {"model": "m"}, **options | more)
    return list(records(path))


def test_only_what_the_judge_prefers_is_learned_and_without_the_preprompt(tmp_path: Path) -> None:
    found = distilled(tmp_path / "d.jsonl")
    assert [record["safer_reward"] > record["plain_reward"] for record in found] == [
        True, False, True,
    ]  # fmt: skip
    assert write_examples(tmp_path / "d.jsonl", tmp_path / "sft.jsonl") == {
        "prompts": 3,
        "examples": 2,
        "by_risk": {"illicit": 1, "generic": 1},
        "left_out": {"plain answer preferred": 1},
        "mean_gain": 4.0,
    }
    first, second = records(tmp_path / "sft.jsonl")
    assert first["messages"] == [
        {"role": "user", "content": USER.content},
        {"role": "assistant", "content": found[0]["safer"], "weight": 1},
    ]
    assert second["messages"][0] == {"role": "system", "content": "Be brief."}
    assert found[0]["preprompt"] not in str(list(records(tmp_path / "sft.jsonl")))


def test_what_does_not_fit_with_its_preprompt(tmp_path: Path) -> None:
    found = distilled(tmp_path / "d.jsonl", fits=lambda dialog: dialog[-1] == USER)
    assert [record["too_long"] for record in found] == [False, True, False]
    assert found[::2] == distilled(tmp_path / "all.jsonl")[::2]
    kept = write_examples(tmp_path / "d.jsonl", tmp_path / "sft.jsonl")
    assert kept["left_out"] == {"too long": 1}


def test_a_killed_distillation_ends_alike(tmp_path: Path) -> None:
    whole = distilled(tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        distilled(tmp_path / "broken.jsonl", scorer=dying(judge, 3))
    assert distilled(tmp_path / "broken.jsonl") == whole


def test_what_keeps_an_answer_out() -> None:
    record = {"safer": "No.", "safer_finished": True, "safer_reward": 0.5, "plain_reward": 0.0}
    record["too_long"] = False
    assert objection(record) is None
    assert objection(record | {"safer": ""}) == "cut off or empty"
    assert objection(record | {"safer_finished": False}) == "cut off or empty"
    assert objection(record | {"plain_reward": 0.5}) == "plain answer preferred"
    assert objection(record, least=0.6) == "still unsafe"
    assert objection(record, least=0.5) is None
    assert objection({"too_long": True}) == "too long"


@pytest.mark.parametrize("risk", ["", *RISKS])
def test_preprompts_vary_and_are_their_seed(risk: str) -> None:
    drawn = [draw_preprompt(risk, random.Random(seed)) for seed in range(30)]
    assert len(set(drawn)) > 5
    assert drawn[3] == draw_preprompt(risk, random.Random(3))
    assert not any("{" in text for text in drawn)
    if risk == "unqualified":
        assert all("professional" in text or "expert" in text for text in drawn)


def test_a_preprompt_keeps_the_system_prompt() -> None:
    assert under("Be good.", [USER]) == [Message("system", "Be good."), USER]
    assert under("Be good.", [Message("system", "Be brief."), USER]) == [
        Message("system", "Be good.\n\nBe brief."),
        USER,
    ]


def test_what_cannot_be_distilled(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with pytest.raises(ValueError, match="no risk category 'odd'; there are illicit"):
        distilled(path, prompts=[Prompt((USER,), risk="odd")])
    with pytest.raises(ValueError, match="no prompts"):
        distilled(path, prompts=[])
    with pytest.raises(ValueError, match="gave nan"):
        distilled(path, scorer=lambda dialogs: [float("nan")] * len(dialogs))


def test_the_red_teams_loop(tmp_path: Path) -> None:
    least = raw_threshold(0.15)
    assert least == pytest.approx(-1.7346, abs=1e-4)
    dialogs = [prompt.messages for prompt in PROMPTS]
    path = tmp_path / "samples.jsonl"
    sample(path, dialogs, answer, judge, {}, count=2, temperature=1.0, seed=1)
    found = violations(path, PROMPTS, least)
    assert [violation.prompt for violation in found] == [PROMPTS[0], PROMPTS[2]]
    assert all(violation.worst.reward == -2 for violation in found)
    low, high = wilson(4, 6)
    assert counts(path, PROMPTS, least, wilson) == {
        "all": {
            "prompts": 3, "violating_prompts": 2, "answers": 6, "violations": 4,
            "share": 4 / 6, "low": low, "high": high,
        },
        "illicit": {
            "prompts": 1, "violating_prompts": 1, "answers": 2, "violations": 2,
            "share": 1.0, "low": wilson(2, 2)[0], "high": 1.0,
        },
        "generic": {
            "prompts": 2, "violating_prompts": 1, "answers": 4, "violations": 2,
            "share": 0.5, "low": wilson(2, 4)[0], "high": wilson(2, 4)[1],
        },
    }  # fmt: skip
    write_violations(found, tmp_path / "violations.jsonl")
    again = read_prompts(tmp_path / "violations.jsonl")
    assert [(p.messages, p.is_safety, p.risk) for p in again] == [
        (PROMPTS[0].messages, True, "illicit"),
        (PROMPTS[2].messages, True, ""),
    ]
    answers = distilled(
        tmp_path / "d.jsonl", prompts=again, plain=[violation.worst for violation in found]
    )
    assert [record["plain"] for record in answers] == [v.worst.text for v in found]
    kept = write_examples(tmp_path / "d.jsonl", tmp_path / "sft.jsonl", least=least)
    assert kept["examples"] == 2


def test_the_worst_answer_decides(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"answers": ["a", "b", "c"], "rewards": [1.0, -3.0, -2.0]}\n')
    (found,) = violations(path, PROMPTS[:1], -1.0)
    assert found.worst == Plain("b", -3.0)
    assert violations(path, PROMPTS[:1], -3.0) == []


@pytest.mark.parametrize("wrong", [0.0, 1.0, -1.0, float("nan")])
def test_thresholds_that_are_none(wrong: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        raw_threshold(wrong)
