"""Rejection sampling: who wins, what is kept, what is trained on."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from puna.chat import Message, encode_dialog
from puna.data.text import records
from puna.tokenizer import Tokenizer
from puna.train.producers.judging import switched_scorer
from puna.train.producers.plots import plot_best_of
from puna.train.producers.rejection_sampling import (
    best,
    curve,
    pool,
    sample,
    winner,
    write_pool,
    write_winners,
)
from puna.train.sampling import Answer, Dialog, fitted
from tests.train.producers.dying import dying

ASKED = [[Message("user", f"Question {n}?")] for n in range(5)]


def draw(
    dialogs: Sequence[Dialog], *, count: int, temperature: float, seeds: Sequence[int]
) -> list[list[Answer]]:
    """So many words, of which a seed decides."""
    return [
        [Answer("word " * generator.randint(1, 9) + dialog[-1].content) for _ in range(count)]
        for dialog, generator in zip(dialogs, map(random.Random, seeds), strict=True)
    ]


def length(dialogs: Sequence[Dialog]) -> list[float]:
    return [float(len(dialog[-1].content.split())) for dialog in dialogs]


def run(path: Path, **more: Any) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"count": 4, "temperature": 1.0, "seed": 1, "chunk": 2}
    sampler, scorer = more.pop("sampler", draw), more.pop("scorer", length)
    sample(path, more.pop("prompts", ASKED), sampler, scorer, {"model": "m"}, **options | more)
    return list(records(path))


def test_the_best_of_each_prompt_wins(tmp_path: Path) -> None:
    found = run(tmp_path / "samples.jsonl")
    assert len(found) == 5
    assert len({answer for record in found for answer in record["answers"]}) > 10
    assert write_winners(tmp_path / "samples.jsonl", tmp_path / "winners.jsonl") == (5, 0)
    for record, won in zip(found, records(tmp_path / "winners.jsonl"), strict=True):
        assert won["reward"] == max(record["rewards"])
        longest = max(record["answers"], key=lambda text: len(text.split()))
        assert won["messages"] == [
            {"role": "user", "content": record["messages"][0]["content"]},
            {"role": "assistant", "content": longest, "weight": 1},
        ]


def test_a_prompt_is_answered_alike_wherever_it_was_broken_off(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken.jsonl", scorer=dying(length, 2))
    assert len(list(records(tmp_path / "broken.jsonl"))) == 2
    assert run(tmp_path / "broken.jsonl") == whole
    assert run(tmp_path / "other.jsonl", seed=2) != whole


def test_only_whole_answers_win() -> None:
    answers = [Answer("cut o", False), Answer(""), Answer("a"), Answer("b")]
    assert best(answers, [9.0, 8.0, 1.0, 1.0]) == 2
    assert best(answers[:2], [9.0, 8.0]) is None
    record = {"messages": [], "answers": ["x"], "finished": [False], "rewards": [1.0]}
    assert winner(record) is None


def test_earlier_answers_are_not_learned_again() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": content} for role, content in turns]
    won = winner({"messages": messages, "answers": ["d"], "finished": [True], "rewards": [0.5]})
    assert won is not None
    assert [m.get("weight") for m in won["messages"]] == [None, 0, None, 1]


def test_the_pool_grows_from_the_fourth_version_on() -> None:
    def won(*names: str) -> list[dict[str, Any]]:
        return [{"messages": [{"role": "user", "content": name}]} for name in names]

    def names(records: list[dict[str, Any]]) -> str:
        return "".join(record["messages"][0]["content"] for record in records)

    versions = [won("a", "b"), won("c"), won("d", "a"), won("e", "c")]
    assert names(pool(versions[:1])) == "ab"
    assert names(pool(versions[:2])) == "c"
    assert names(pool(versions[:3])) == "da"
    assert names(pool(versions)) == "abcde"
    assert names(pool(versions[:2], from_version=2)) == "abc"


def test_the_pool_of_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.jsonl" for n in range(4)]
    for number, path in enumerate(paths):
        path.write_text(json.dumps({"messages": [number]}) + "\n")
    assert write_pool(paths, tmp_path / "pool.jsonl") == 4
    assert [r["messages"] for r in records(tmp_path / "pool.jsonl")] == [[0], [1], [2], [3]]
    paths[0].write_text("[]\n")
    with pytest.raises(ValueError, match=r"0\.jsonl, record 1"):
        write_pool(paths, tmp_path / "pool.jsonl")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "1 or more, not 0"),
        ({"prompts": []}, "no prompts"),
        ({"scorer": lambda dialogs: [float("nan")] * len(dialogs)}, "gave nan for .*Question 0"),
        ({"scorer": lambda dialogs: [0.0]}, "1 rewards for 8 dialogs"),
    ],
)
def test_what_cannot_be(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "samples.jsonl", **wrong)


@pytest.mark.parametrize("count", [1, 4])
def test_curves_are_drawn(tmp_path: Path, count: int) -> None:
    found = run(tmp_path / "samples.jsonl", count=count)
    drawn = curve(tmp_path / "samples.jsonl")
    highest = [max(record["rewards"]) for record in found]
    assert drawn["max"][-1] == pytest.approx(sum(highest) / len(highest))
    path = plot_best_of({1.0: drawn, 1.2: drawn}, tmp_path / "best_of.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_the_switch_of_two_reward_models() -> None:
    risky = Message("user", "Question 1?")

    def safe(dialogs: Sequence[Dialog]) -> list[float]:
        return [-2.0 if dialog[-1].content == "bad" else 3.0 for dialog in dialogs]

    scorer = switched_scorer(length, safe, lambda prompt: list(prompt) == [risky])
    asked = [(ASKED[0][0], "a b"), (ASKED[0][0], "bad"), (risky, "a b"), (risky, "bad")]
    dialogs = [[user, Message("assistant", answer)] for user, answer in asked]
    assert scorer(dialogs) == [2.0, -2.0, 3.0, -2.0]


def test_what_is_too_long_when_it_is_read_again_loses_its_end(tokenizer: Tokenizer) -> None:
    user = Message("user", "Hi")
    long = [user, Message("assistant", "\ufffd" * 40)]
    short = [user, Message("assistant", "Hi")]
    seen: list[Dialog] = []

    def scorer(dialogs: Sequence[Dialog]) -> list[float]:
        seen.extend(dialogs)
        return [0.0] * len(dialogs)

    fitted(scorer, tokenizer, 60)([short, long])
    assert seen[0] == short
    assert len(encode_dialog(tokenizer, seen[1]).ids) <= 60
    assert 5 < len(seen[1][-1].content) < 40
    assert not Answer("a \ufffd").usable
