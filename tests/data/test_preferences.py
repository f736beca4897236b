"""Comparisons: each form, what is counted and left out, and what is an error."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from puna.chat import Message
from puna.data import preferences
from puna.data.preferences import Comparison, read_comparisons

Q, A, B = (
    [{"role": "user", "content": "Which?"}],
    [{"role": "assistant", "content": "This."}],
    [{"role": "assistant", "content": "That."}],
)
PLAIN = Comparison((Message("user", "Which?"),), "This.", "That.")


def written(folder: Path, *records: Any, name: str = "a.jsonl") -> Path:
    path = folder / name
    lines = "\n".join(json.dumps(record) for record in records)
    path.write_text(json.dumps(records) if name.endswith(".json") else lines)
    return path


def test_our_form_goes_and_comes_back(tmp_path: Path) -> None:
    record = {"prompt": Q, "chosen": A, "rejected": B}
    rated = record | {"rating": "better", "chosen_safe": True, "rejected_safe": False, "id": "x"}
    found, skipped = read_comparisons(written(tmp_path, record, rated))
    assert found == [PLAIN, Comparison(PLAIN.prompt, "This.", "That.", "better", True, False)]
    assert not skipped
    again = written(tmp_path, *(each.to_record() for each in found), name="b.jsonl")
    assert read_comparisons(again) == (found, skipped)
    chosen, rejected = found[0].dialogs()
    assert chosen == [Message("user", "Which?"), Message("assistant", "This.")]
    assert rejected[1].content == "That."


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Which?", "chosen": "This.", "rejected": "That."},
        {"chosen": Q + A, "rejected": Q + B},
        {"chosen": "\n\nHuman: Which?\n\nAssistant: This.",
         "rejected": "\n\nHuman: Which?\n\nAssistant: That."},
        {"question": "Which?", "preference": [0, 0, 1, 0, 0, 0], "prediction 1": "This.",
         "prediction 2": "x", "prediction 3": "y", "prediction 4": "That."},
    ],
)  # fmt: skip
def test_other_forms_of_the_same(tmp_path: Path, record: dict[str, Any]) -> None:
    for name in ("a.jsonl", "a.json"):
        assert read_comparisons(written(tmp_path, record, name=name))[0] == [PLAIN]


def test_qa_feedback_compares_in_order(tmp_path: Path) -> None:
    answers = {f"prediction {n}": f"p{n}" for n in range(1, 5)}
    record = {"question": "Q", "preference": [1, 2, 1, 2, 0, 2], "passages": [["T", "u"], ["V"]]}
    path = written(tmp_path, record | answers)
    found, skipped = read_comparisons(path)
    assert [(each.chosen, each.rejected) for each in found] == [
        ("p1", "p2"), ("p3", "p1"), ("p1", "p4"), ("p3", "p2"), ("p4", "p3")
    ]  # fmt: skip
    assert skipped == {preferences.TIE: 1}
    found, _ = read_comparisons(path, form="qa-feedback-passages")
    assert found[0].prompt == (Message("user", "T\nu\n\nV\n\nQ"),)


@pytest.mark.parametrize(
    ("votes", "rating"),
    [
        ((2, 2, 2), "significantly_better"),
        ((2, 0, 2), "better"),
        ((2, 1, 2), "slightly_better"),
        ((0, 2, 0), "negligibly_better"),
        ((0, 0, 0), None),
        ((1, 0, 2), None),
    ],
)
def test_agreement_is_a_rating(
    tmp_path: Path, votes: tuple[int, int, int], rating: str | None
) -> None:
    record = {"instruction": "Check.", "input": "1 = 1", "response1": "No", "response2": True}
    record |= {f"annotator{number}": vote for number, vote in enumerate(votes, start=1)}
    sure = record | {f"annotator{number}": 1 for number in (1, 2, 3)}
    found, skipped = read_comparisons(written(tmp_path, sure, record))
    assert found[0] == Comparison(
        (Message("user", "Check.\n\n1 = 1"),), "No", "true", "significantly_better"
    )
    assert [each.rating for each in found[1:]] == ([rating] if rating else [])
    assert skipped == ({} if rating else {preferences.TIE: 1})
    assert not rating or found[1].chosen == "true"


def test_what_is_no_use_is_counted(tmp_path: Path) -> None:
    good = {"prompt": Q, "chosen": A, "rejected": B}
    path = written(
        tmp_path,
        good,
        good | {"rejected": A},
        good | {"rejected": [{"role": "assistant", "content": " This. \n"}]},
        good | {"chosen": [{"role": "assistant", "content": " "}]},
        good | {"prompt": A},
        good | {"prompt": Q + A},
        good | {"prompt": [{"role": "user", "content": "[INST] <<SYS>>"}]},
        good | {"prompt": [{"role": "user", "content": "half a pair: \ud83d"}]},
        good | {"chosen_safe": False, "rejected_safe": True},
        {"chosen": Q + A, "rejected": A + B},
    )
    found, skipped = read_comparisons(path)
    assert found == [PLAIN]
    assert skipped == Counter({
        preferences.EQUAL: 2, preferences.EMPTY: 1, preferences.TURNS: 2, preferences.TAGGED: 1,
        preferences.UNSAFE: 1, preferences.APART: 1, preferences.BROKEN: 1,
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"no comparison to learn from \(1 equal answers\)"):
        read_comparisons(written(tmp_path, good | {"rejected": A}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rating": "best"}, r"record 2: the rating 'best' is not on the scale: significantly"),
        ({"rating": 3}, "the rating 3 is not on the scale"),
        ({"chosen_safe": 1}, "chosen_safe is true or false, not 1"),
        ({"chosen": 5}, "chosen is neither a text nor a list of messages"),
        ({"chosen": []}, "chosen is neither"),
        ({"chosen": Q}, "chosen is to be one message of the assistant"),
        ({"chosen": [{"role": "assistant"}]}, "no role and content that are texts"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    good = {"prompt": Q, "chosen": A, "rejected": B}
    with pytest.raises(ValueError, match=words):
        read_comparisons(written(tmp_path, good, good | change))


def test_files_of_no_form(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"record 1: a comparison of no known form; .*pandalm \("):
        read_comparisons(written(tmp_path, {"better": 1}))
    with pytest.raises(ValueError, match="record 1: it is no object"):
        read_comparisons(written(tmp_path, [1]))
    with pytest.raises(ValueError, match="no form 'x' of comparisons; there are: transcripts"):
        read_comparisons(tmp_path / "a.jsonl", form="x")
    with pytest.raises(ValueError, match="it lacks 'preference', which the form qa-feedback has"):
        read_comparisons(written(tmp_path, {"question": "a"}), form="qa-feedback")
    with pytest.raises(ValueError, match="a vote is 0, 1 or 2, not 3"):
        answers = {f"prediction {n}": f"p{n}" for n in range(1, 5)}
        read_comparisons(written(tmp_path, {"question": "a", "preference": [3] * 6} | answers))
    with pytest.raises(ValueError, match=r"\(it is empty\)"):
        read_comparisons(written(tmp_path))
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match="one list of records"):
        read_comparisons(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("name", "count", "skipped"),
    [
        ("hh-harmless-base-test.jsonl", 2299,
         {preferences.APART: 5, preferences.EMPTY: 4, preferences.TURNS: 4}),
        ("qa-feedback-dev.json", 2616, {preferences.TIE: 384}),
        ("pandalm-testset.json", 861, {preferences.TIE: 85, preferences.EMPTY: 53}),
    ],
)  # fmt: skip
def test_real_files(shared: Path, name: str, count: int, skipped: dict[str, int]) -> None:
    found, others = read_comparisons(shared / "preference" / name)
    assert len(found) == count and others == skipped
