"""`puna tasks`, as its users meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puna import cli
from puna.recipes.tasks.task import lines, read_tasks
from tests.recipes.tasks.sources import write_sources


def puna(*arguments: str | Path) -> None:
    cli.puna.main([*map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of twenty tasks of different kinds."""
    folder = tmp_path_factory.mktemp("tasks")
    puna("tasks", "build", "--sources", write_sources(folder), "--out", folder / "all")
    found = read_tasks(folder / "all" / "held_out.jsonl")
    chosen = list({task.kind: task for task in found}.values())
    chosen += found[: 20 - len(chosen)]
    (folder / "few.jsonl").write_bytes(lines([task.row() for task in chosen]))
    return folder / "few.jsonl"


def test_build_says_what_it_wrote_and_overwrites_nothing(
    few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = few.parent / "again"
    puna("tasks", "build", "--sources", few.parent, "--out", out, "--seed", "3", "--json")
    counts = json.loads(capsys.readouterr().out)["lines"]
    for name, count in counts.items():
        text = (out / f"{name}.jsonl").read_text(encoding="utf-8")
        assert len(text.splitlines()) == count > 0
    with pytest.raises(ValueError, match="exists already"):
        puna("tasks", "build", "--sources", few.parent, "--out", out)


def test_score_tells_what_the_answers_are_worth(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("tasks", "score", few, "--max-tokens", "12")
    puna(*arguments, "--json", "--out", tmp_path / "answers.jsonl")
    told = json.loads(capsys.readouterr().out)
    found = read_tasks(few)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [each["id"] for each in answers] == [task.id for task in found]
    for task, each in zip(found, answers, strict=True):
        assert each["gold"] == task.check(each["answer"])
    overall = [row for row in told["rows"] if row["kind"] == "all"]
    assert sum(row["gold"] * row["count"] for row in overall) == pytest.approx(
        sum(each["gold"] for each in answers)
    )
    puna(*arguments)
    shown = capsys.readouterr().out
    assert "violations: " in shown and "refusal" in shown
    with pytest.raises(ValueError, match="temperature"):
        puna("tasks", "score", few, "--temperature", "-1")
    with pytest.raises(ValueError, match="exists already"):  # before the model is looked for
        puna(*arguments, "--model", "nowhere", "--out", tmp_path / "answers.jsonl")


def test_compare_prefers_by_gold(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs.jsonl"
    sampled = ("--samples", "3", "--max-tokens", "8", "--seed", "2")
    puna("tasks", "compare", few, "--out", out, *sampled)
    assert "pairs from 20 prompts" in capsys.readouterr().out.replace("\n", " ")
    by_id = {task.id: task for task in read_tasks(few)}
    for line in out.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert by_id[row["id"]].check(chosen) >= by_id[row["id"]].check(rejected)
        assert chosen != rejected
    with pytest.raises(ValueError, match="exists already"):
        puna("tasks", "compare", few, "--out", out)
    with pytest.raises(ValueError, match="no prompt of"):
        puna("tasks", "compare", few, "--out", tmp_path / "same.jsonl", "--temperature", "0")
    assert not (tmp_path / "same.jsonl").exists()
