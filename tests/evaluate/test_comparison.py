"""Comparing runs: figures are those of the pairs; runs that asked other things are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from puna.evaluate.comparison import compare_runs
from puna.evaluate.paired import mcnemar
from tests.evaluate.runs import sample, write_run

RIGHT_A, RIGHT_B = (1, 0, 0, 0, 0, 1), (1, 1, 1, 0, 1, 0)


def samples(values: tuple[float, ...], metric: str = "acc") -> list:
    return [sample(str(i), float(v), metric=metric) for i, v in enumerate(values)]


@pytest.fixture
def a(tmp_path: Path) -> Path:
    tasks = {"arc": samples(RIGHT_A), "truthful": samples((0.2, 0.3, 0.4), "mc2")}
    return write_run(tmp_path / "a", tasks, truthful={"metric": "mc2"})


def test_two_runs(a: Path, tmp_path: Path) -> None:
    # In another order, which does not matter.
    tasks = {"truthful": samples((0.3, 0.5, 0.4), "mc2"), "arc": samples(RIGHT_B)[::-1]}
    tasks["boolq"] = samples((1, 0))
    b = write_run(tmp_path / "b", tasks, model="cria-chat", truthful={"metric": "mc2"})
    found = compare_runs(a, b)
    assert (found.a, found.b, found.only_a, found.only_b) == ("cria", "cria-chat", (), ("boolq",))
    arc, truthful = found.tasks
    assert (arc.task, arc.result.up, arc.result.down) == ("arc", 3, 1)
    assert arc.result.p == mcnemar(3, 1) == 10 / 16
    assert arc.result.difference == pytest.approx(2 / 6)
    assert [example.id for example in arc.examples] == ["1", "2", "4", "5"]
    assert (arc.examples[0].given_a, arc.examples[0].given_b) == ("given 0.0", "given 1.0")
    assert truthful.result.difference == pytest.approx(0.1)
    assert truthful.result.test == "Student, paired"
    assert [example.id for example in truthful.examples] == ["1", "0"]  # the larger change first
    assert truthful.p_holm == pytest.approx(2 * truthful.result.p)


def test_nothing_in_common(a: Path, tmp_path: Path) -> None:
    b = write_run(tmp_path / "b", {"boolq": samples((1, 0))})
    with pytest.raises(ValueError, match="no task in common: one has arc, truthful, the other boo"):
        compare_runs(a, b)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shots": 5}, "arc: one run has the shots 0, the other 5"),
        ({"metric": "acc_norm"}, "arc: one run has the metric acc, the other acc_norm"),
    ],
)
def test_other_conditions(a: Path, tmp_path: Path, changed: dict, said: str) -> None:
    metric = changed.get("metric", "acc")
    b = write_run(tmp_path / "b", {"arc": samples(RIGHT_B, metric)}, arc=changed)
    with pytest.raises(ValueError, match=said):
        compare_runs(a, b)


def test_other_questions(a: Path, tmp_path: Path) -> None:
    fewer = write_run(tmp_path / "fewer", {"arc": samples(RIGHT_B)[:4]})
    with pytest.raises(ValueError, match="arc: 2 questions are in one run alone, such as 4;"):
        compare_runs(a, fewer)
    others = samples(RIGHT_B)
    others[3] = dataclasses.replace(others[3], question="Another?")
    with pytest.raises(ValueError, match="arc: question 3 is another one in the two runs"):
        compare_runs(a, write_run(tmp_path / "others", {"arc": others}))
    twice = write_run(tmp_path / "twice", {"arc": [*samples(RIGHT_B), sample("0", 1.0)]})
    with pytest.raises(ValueError, match="arc has question 0 twice"):
        compare_runs(a, twice)


def test_answers_that_could_not_be_measured_are_left_out(a: Path, tmp_path: Path) -> None:
    some = [*samples(RIGHT_B)[:5], dataclasses.replace(sample("5", 0.0), metrics={"other": 1.0})]
    (arc,) = compare_runs(a, write_run(tmp_path / "b", {"arc": some})).tasks
    assert (arc.result.count, arc.left_out, arc.result.down) == (5, 1, 0)
