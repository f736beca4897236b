"""Metrics that lm-eval lacks, and those that it has, on examples worked out by hand."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from puna.evaluate.harness.loading import load
from puna.evaluate.pass_at_k import pass_at_k
from puna.evaluate.spans import exact_match, f1, normalized
from puna.evaluate.tasks.table import TASKS
from tests.evaluate.paper_questions import write_paper


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paper(tmp_path_factory.mktemp("metrics"))


def definition(folder: Path, name: str) -> Any:
    task = TASKS[name]
    parts = load(task, folder, shots=task.shots, seed=1234, shared_shots=False)
    return next(iter(parts.values()))


def test_pass_at_k_is_the_share_of_choices_that_have_a_right_one() -> None:
    for tries, right, k in [(5, 2, 1), (5, 2, 3), (6, 1, 6), (4, 4, 2), (4, 0, 2)]:
        chosen = list(combinations(range(tries), k))
        expected = sum(min(each) < right for each in chosen) / len(chosen)
        assert pass_at_k(tries, right, k) == pytest.approx(expected)
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)  # 1 - C(3, 3) / C(5, 3) = 1 - 1/10
    assert pass_at_k(200, 20, 1) == pytest.approx(0.1)


@pytest.mark.parametrize(("tries", "right", "k"), [(1, 0, 2), (2, 3, 1), (2, 1, 0)])
def test_no_pass_at_k_of_too_few(tries: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="no pass@"):
        pass_at_k(tries, right, k)


def test_words_are_compared_as_squad_does() -> None:
    assert normalized("  The  Beatles' (1st) album, an LP! ") == "beatles 1st album lp"
    assert normalized("Theory of a man") == "theory of man"
    assert exact_match("the Cat.", ["dog", "A cat"]) == 1.0
    assert exact_match("cats", ["cat"]) == 0.0


def test_f1_of_words() -> None:
    # Shared: "in", "june", "1944" of 4 and of 3: P 3/4, R 1, F1 6/7.
    assert f1("early in June 1944", ["1944, in June"]) == pytest.approx(6 / 7)
    assert f1("no no", ["no"]) == pytest.approx(2 / 3)  # a word counts as often as it is there
    assert f1("a cat", ["no dog", "the cat"]) == 1.0
    assert [f1("", [""]), f1("", ["x"]), f1("the", ["a"])] == [1.0, 0.0, 1.0]


def test_endings_by_their_characters(folder: Path) -> None:
    """-6/3 < -4/4 < -5/6: the likeliest is the second, for each character the third."""
    piqa, siqa = definition(folder, "piqa"), definition(folder, "social_iqa")
    answers = [(-4.0, False), (-5.0, False)]
    doc = {"goal": "g", "sol1": "long", "sol2": "longer one", "label": 1}
    assert piqa.process_results(doc, answers)["acc_norm"] == 1.0
    assert piqa.process_results(doc, answers)["acc"] == 0.0
    doc = {"context": "", "question": "", "label": "3"}
    doc |= {"answerA": "sad", "answerB": "glad", "answerC": "joyful"}
    answers = [(-6.0, False), (-4.0, False), (-5.0, False)]
    assert siqa.process_results(doc, answers) == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 1.0}
    # 4 characters of 2 bytes each: -4/4 > -5/6 no more, but -4/8 > -5/6.
    doc |= {"answerB": "éééé", "label": "2"}
    assert siqa.process_results(doc, answers) == {"acc": 1.0, "acc_norm": 0.0, "acc_bytes": 1.0}


# Of the first question of each: what is given -> exact match.
_SAID = "Final Answer: The final answer is ${}$. I hope it is correct."
GIVEN = {
    "nq_open": {"the 14 December, 1972 UTC": 1, "1972": 0},
    "triviaqa": {"A Bulb-onion": 1, "an onion": 1, "onions": 0},
    "gsm8k": {"18": 1, "$18.": 1, "180": 0},
    # The last is right, but not said as in the shots.
    "math": {_SAID.format("0.5"): 1, _SAID.format("\\frac{2}{4}"): 1, "It is $\\frac{1}{2}$": 0},
}


@pytest.mark.parametrize("name", GIVEN)
def test_answers_in_words_and_numbers(folder: Path, name: str) -> None:
    task = definition(folder, name)
    question = next(iter(task.eval_docs))
    for given, expected in GIVEN[name].items():
        assert task.process_results(question, [given])["exact_match"] == expected, given


def test_choices_of_several_right_endings(folder: Path) -> None:
    """mc2: of the endings' likelihoods 4, 1 and 3 tenths, those of the first two are right."""
    task = definition(folder, "truthfulqa_mc2")
    doc = {"mc2_targets": {"choices": ["a", "b", "c"], "labels": [1, 1, 0]}}
    answers = [(math.log(likelihood), False) for likelihood in (0.4, 0.1, 0.3)]
    assert task.process_results(doc, answers)["acc"] == pytest.approx(0.5 / 0.8)
