"""Results are read as they were written; what is not whole is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from puna.evaluate.results import (
    Results,
    Sample,
    Score,
    TaskResult,
    begin,
    clock,
    read_results,
    read_samples,
    write_results,
    write_samples,
)

ARC = TaskResult(
    task="arc_challenge",
    title="ARC-Challenge",
    shots=25,
    metric="acc_norm",
    metrics={"acc": Score(0.25, 0.01, 1172), "acc_norm": Score(0.5, 0.02, 1172)},
    groups={"science": Score(0.5, 0.02, 1172)},
    notes=("a note",),
)


def test_results_are_read_as_written(tmp_path: Path) -> None:
    results = Results("cria", "leaderboard", {"limit": None}, (ARC,), 12.5)
    write_results(tmp_path, results)
    assert read_results(tmp_path) == results
    assert results.tasks[0].score == Score(0.5, 0.02, 1172)


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"tasks": [{}]}', b'{"tasks": [], "other": 1}', b'{"tasks": 3}']
)
def test_damaged_results_are_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "results.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        read_results(tmp_path)


def test_a_metric_that_counts_must_be_there(tmp_path: Path) -> None:
    write_results(tmp_path, Results("m", "s", {}, (dataclasses.replace(ARC, metric="f1"),), 0.0))
    with pytest.raises(ValueError, match="arc_challenge has no f1"):
        read_results(tmp_path)


def test_a_tasks_name_leads_to_no_other_folder(tmp_path: Path) -> None:
    task = dataclasses.replace(ARC, task="../arc")
    write_results(tmp_path, Results("m", "s", {}, (task,), 0.0))
    with pytest.raises(ValueError, match="is no task's name"):
        read_results(tmp_path)


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no results\.json"):
        read_results(tmp_path)


def test_a_folder_is_of_one_evaluation(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert begin(out, {"model": "m", "tasks": ("a",)}) == {"model": "m", "tasks": ["a"]}
    assert begin(out, {"model": "m", "tasks": ["a"]}) == json.loads(
        (out / "config.json").read_text()
    )
    for other in ({"model": "n", "tasks": ["a"]}, {"model": "m"}):
        with pytest.raises(ValueError, match="an evaluation with other settings"):
            begin(out, other)
    (out / "config.json").write_text("[")
    with pytest.raises(ValueError, match="other settings"):
        begin(out, {"model": "m"})
    with pytest.raises(ValueError, match="holds other things"):
        begin(tmp_path, {"model": "m"})
    with pytest.raises(ValueError, match="is a file"):
        begin(out / "config.json", {})


def test_seconds_are_those_of_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with pytest.raises(KeyboardInterrupt), clock(tmp_path):
        now[0] += 40
        raise KeyboardInterrupt
    now[0] += 1000  # nobody works
    with clock(tmp_path) as seconds:
        now[0] += 2.5
        assert seconds() == 42.5
    with clock(tmp_path) as seconds:
        assert seconds() == 42.5


def test_samples(tmp_path: Path) -> None:
    sample = Sample("7", "Why?", "B", "A", {"acc": 0.0}, [-1.5, -2.0], "science")
    for _ in range(2):
        write_samples(tmp_path, "arc", [sample])
    path = tmp_path / "samples" / "arc.jsonl"
    assert list(read_samples(tmp_path, "arc")) == [sample]
    path.write_text('{"id": "7"}\n')
    with pytest.raises(ValueError, match=r"arc\.jsonl line 1 is damaged"):
        list(read_samples(tmp_path, "arc"))
    with pytest.raises(ValueError, match="has no samples of boolq"):
        list(read_samples(tmp_path, "boolq"))
