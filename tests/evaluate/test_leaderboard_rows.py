"""Local files of the leaderboard's benchmarks become the columns of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puna.evaluate.suites import SUITES
from puna.evaluate.tasks.leaderboard import SUBJECTS
from puna.evaluate.tasks.table import TASKS, task_of


def write(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def test_suites_name_tasks() -> None:
    assert all(name in TASKS for suite in SUITES.values() for name in suite.tasks)
    with pytest.raises(ValueError, match="no task 'arc'; there are: arc_challenge"):
        task_of("arc")


@pytest.mark.parametrize(
    ("context", "first", "second"),
    [
        ("A man sits on a roof. he", "A man sits on a roof.", "he"),
        ("One. Two! the old lady", "One. Two!", "the old lady"),
        ('He says "go." the dog', 'He says "go."', "the dog"),
        ("[header] How to sing [step] Open your mouth.", None, ""),
        ("no sentence ends here", None, ""),
    ],
)
def test_where_the_unfinished_sentence_begins(
    tmp_path: Path, context: str, first: str | None, second: str
) -> None:
    write(tmp_path / "validation.jsonl", {"ctx": context, "endings": []})
    (row,) = TASKS["hellaswag"].rows(tmp_path)["hellaswag"]["validation"]
    assert (row["ctx_a"], row["ctx_b"]) == (first or context, second)


def test_a_row_of_the_hub_stays(tmp_path: Path) -> None:
    row = {"ctx": "A. b", "ctx_a": "A", "ctx_b": ". b"}
    write(tmp_path / "validation.jsonl", row)
    assert TASKS["hellaswag"].rows(tmp_path)["hellaswag"]["validation"] == [row]


def test_subjects_of_mmlu(tmp_path: Path) -> None:
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 57
    rows = [{"subject": "virology", "question": "?"}, {"subject": "anatomy", "question": "\u2028!"}]
    write(tmp_path / "test.jsonl", *rows)
    write(tmp_path / "dev.jsonl", rows[0])
    found = TASKS["mmlu"].rows(tmp_path)
    assert found["virology"] == {"test": rows[:1], "dev": rows[:1]}
    assert found["anatomy"] == {"test": rows[1:], "dev": []}


def test_endings_of_truthfulqa(tmp_path: Path) -> None:
    (tmp_path / "TruthfulQA.csv").write_text(
        "\ufeffType,Question,Best Answer,Correct Answers,Incorrect Answers\n"
        'x,Is it so?,Yes; it is,"Yes; it is so, truly.; ",No;Never\n',
        encoding="utf-8",
    )
    (row,) = TASKS["truthfulqa_mc2"].rows(tmp_path)["truthfulqa_mc2"]["validation"]
    assert row["question"] == "Is it so?"
    assert row["mc2_targets"] == {
        "choices": ["Yes.", "it is so, truly.", "No.", "Never."],
        "labels": [1, 1, 0, 0],
    }
    assert row["mc1_targets"]["labels"] == [1, 0, 0]


def test_what_is_wrong_with_files_is_said(tmp_path: Path) -> None:
    task = TASKS["arc_challenge"]
    with pytest.raises(ValueError, match=r"there is no .*train\.jsonl; --data is the folder"):
        task.rows(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"id": 1}\n\n[]\n')
    with pytest.raises(ValueError, match=r"train\.jsonl line 3 is not an object"):
        task.rows(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"id": 1}\n{\n')
    with pytest.raises(ValueError, match=r"train\.jsonl line 2 is not JSON"):
        task.rows(tmp_path)


def test_real_rows(shared: Path) -> None:
    counts = {"arc_challenge": 1172, "hellaswag": 10042, "mmlu": 14042, "truthfulqa_mc2": 817}
    for name, count in counts.items():
        task = TASKS[name]
        parts = task.rows(shared / "eval" / task.folder)
        assert parts.keys() == task.parts.keys()
        split = "test" if name in ("arc_challenge", "mmlu") else "validation"
        assert sum(len(part[split]) for part in parts.values()) == count
    halves = TASKS["hellaswag"].rows(shared / "eval/hellaswag")["hellaswag"]["validation"]
    assert halves[0]["ctx_b"] == "he" and halves[1]["ctx_b"] == "the lady"
