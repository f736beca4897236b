"""Pairs and scores, with numbers worked out by hand."""

from __future__ import annotations

import random

import pytest

from puna.chat import Message
from puna.evaluate.wilson import wilson
from puna.recipes.tasks.pairs import EQUAL_SHARE, compared, pair, sampled
from puna.recipes.tasks.report import rows, safety
from puna.recipes.tasks.task import Requirement, Task


def task(kind: str, *requirements: Requirement, novel: bool = False) -> Task:
    return Task(
        "x/1", kind, "g", "s", "q", (Message("user", "q"),), "a", requirements,
        is_safety=kind == "refusal", novel=novel,
    )  # fmt: skip


LOUD = task("format", Requirement("capitals"), Requirement("exclaims"))
UNSAFE = task("refusal", Requirement("refuses"))
BENIGN = task("benign", Requirement("helps", {"about": ["a car"]}))


@pytest.mark.parametrize(
    ("one", "other", "chosen", "rating"),
    [
        ("GO!", "go.", "GO!", "significantly_better"),
        ("go.", "GO!", "GO!", "significantly_better"),
        ("GO.", "go.", "GO.", "better"),
        ("go!", "GO!", "GO!", "better"),
    ],
)
def test_the_better_is_chosen(one: str, other: str, chosen: str, rating: str) -> None:
    row = pair(LOUD, one, other, random.Random(0))
    assert row is not None
    assert row["chosen"] == [{"role": "assistant", "content": chosen}]
    assert row["rating"] == rating
    assert (row["chosen_safe"], row["rejected_safe"]) == (True, True)


def test_small_gaps_are_rated_slightly() -> None:
    many = task("format", *[Requirement("capitals")] * 3, Requirement("exclaims"))
    row = pair(many, "GO!", "GO.", random.Random(0))
    assert row is not None and row["rating"] == "slightly_better"


def test_safety_labels() -> None:
    row = pair(UNSAFE, "Sure! Go.", "I cannot help with that.", random.Random(0))
    assert row is not None
    assert (row["chosen_safe"], row["rejected_safe"], row["is_safety"]) == (True, False, True)


def test_equal_pairs_are_few_and_same_or_empty_ones_none() -> None:
    generator = random.Random(0)
    kept = [pair(LOUD, "GO!", "RUN!", generator) for _ in range(2000)]
    share = sum(row is not None for row in kept) / len(kept)
    assert abs(share - EQUAL_SHARE) < 0.04
    assert {row["rating"] for row in kept if row} == {"negligibly_better"}
    assert pair(LOUD, "GO!", "GO! ", generator) is None
    assert pair(LOUD, "GO!", " ", generator) is None


def test_of_samples_best_and_worst() -> None:
    row = sampled(LOUD, ["GO.", "go.", "GO!", "go."], random.Random(0))
    assert row is not None
    assert row["chosen"][0]["content"] == "GO!" and row["rejected"][0]["content"] == "go."
    assert sampled(LOUD, ["GO!", "GO!"], random.Random(0)) is None
    generator = random.Random(0)
    equal = [sampled(LOUD, ["GO!", "RUN!", "SIT!"], generator) for _ in range(100)]
    assert 10 < sum(row is not None for row in equal) < 45


def test_of_samples_several_pairs() -> None:
    answers = ["GO.", "go.", "GO!", "go.", " "]
    rows = compared(LOUD, answers, random.Random(0), most=9)
    found = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}
    assert found == {("GO!", "GO."), ("GO!", "go."), ("GO.", "go.")}
    assert len(compared(LOUD, answers, random.Random(0), most=2)) == 2
    assert compared(LOUD, ["GO!", "RUN!"], random.Random(0), most=9) == []  # as good


def test_wilson_interval() -> None:
    # 8 of 10: (0.8 + 0.19207 -+ 1.95996 sqrt(0.016 + 0.0096036)) / 1.38415
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == 1
    assert wilson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="6 of 5"):
        wilson(6, 5)


def test_rows_and_rates() -> None:
    novel = task("format", Requirement("capitals"), Requirement("exclaims"), novel=True)
    tasks = [LOUD, LOUD, novel, UNSAFE, UNSAFE, BENIGN]
    answers = ["GO!", "GO.", "go", "I cannot help with that.", "Sure! Go.", "I can't help you."]
    found = {(row.kind, row.subjects): row for row in rows(tasks, answers)}
    assert found["format", "known"].gold == 0.75
    assert found["format", "known"].passed == 0.5
    assert (found["format", "known"].low, found["format", "known"].high) == wilson(1, 2)
    assert found["format", "novel"].gold == 0
    assert found["all", "known"].count == 5
    assert found["all", "known"].gold == pytest.approx((1 + 0.5 + 1) / 5)
    rates = {rate.name: rate for rate in safety(tasks, answers)}
    assert (rates["violations"].rate, rates["violations"].count) == (0.5, 2)
    assert rates["false refusals"].rate == 1
