"""`puna eval safety`, on the shipped model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from puna.commands.eval_safety import safety_command
from puna.evaluate.results import read_results, read_samples
from puna.evaluate.safety.bold import DOMAINS


def run(command: click.Command, *arguments: Any) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def data(folder: Path) -> Path:
    """Benchmarks of a few prompts."""
    for name in ("toxigen", "bold", "truthfulqa"):
        (folder / name).mkdir(parents=True)
    (folder / "toxigen/hate_asian_1k.txt").write_text("- a llama\\n-\n- the sea\\n-\n")
    for domain in DOMAINS:
        groups = {"one": {"One": ["Once upon a time "]}}
        (folder / f"bold/{domain}_prompt.json").write_text(json.dumps(groups))
    (folder / "truthfulqa/TruthfulQA.csv").write_text(
        "Category,Question,Best Answer,Correct Answers,Incorrect Answers\n"
        "Myths,Where is Peru?,In South America,In South America; There,In Peru; On Mars\n"
    )
    return folder


def test_safety_of_the_shipped_model(tmp_path: Path) -> None:
    arguments = ["-m", "cria-chat", "--data", data(tmp_path / "data"), "--out", tmp_path / "out"]
    arguments += ["--truth-judge", "cria", "--information-judge", "cria", "--limit", 2]
    done = run(safety_command, *arguments, "--max-tokens", 12)
    assert done.exit_code == 0, done.output
    results = {task.task: task for task in read_results(tmp_path / "out").tasks}
    assert list(results) == [
        "truthfulqa_mc2", "refusal", "false_refusal", "toxigen", "bold", "truthfulqa_judged",
    ]  # fmt: skip
    assert 0 < results["truthfulqa_mc2"].score.value < 1
    assert len(list(read_samples(tmp_path / "out", "truthfulqa_mc2"))) == 1
    assert results["refusal"].score.questions == 6
    assert set(results["refusal"].groups) == {"hateful", "illicit", "unqualified"}
    assert "lexicon" in results["toxigen"].notes[0] and "lexicon" in results["bold"].notes[0]
    # What is no yes and no no is no figure.
    assert results["truthfulqa_judged"].score.questions == 0
    assert "1 could not be measured" in results["truthfulqa_judged"].notes
    given = [sample.given for sample in read_samples(tmp_path / "out", "bold")]
    assert len(set(given)) == 1 and given[0] and "\n" not in given[0]
    assert "lexicon of toxic terms (no classifier)" in done.output
    again = run(safety_command, *arguments, "--max-tokens", 12, "--json")
    assert json.loads(again.output)["tasks"][1]["metrics"]["refusal"]["questions"] == 6


def test_safety_in_chat_and_without_data(tmp_path: Path) -> None:
    done = run(safety_command, "-m", "cria-chat", "--out", tmp_path / "a", "--limit", 1)
    assert done.exit_code == 0, done.output
    assert [task.task for task in read_results(tmp_path / "a").tasks] == [
        "refusal", "false_refusal",
    ]  # fmt: skip
    folder = data(tmp_path / "data")
    done = run(
        safety_command, "-m", "cria-chat", "--data", folder, "--chat", "--limit", 1,
        "--max-tokens", 8, "--out", tmp_path / "b", "--dtype", "fp32",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    toxigen = next(t for t in read_results(tmp_path / "b").tasks if t.task == "toxigen")
    assert toxigen.notes[-1] == "asked as a user's message"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--truth-judge", "cria"], "go together"),
        (["--truth-judge", "cria", "--information-judge", "cria"], "needs --data"),
        (["--data", "nowhere"], "no prompts of ToxiGen in nowhere"),
        (["--data", "DATA", "--toxicity-classifier", "nowhere"], "cannot be opened as a classif"),
        (
            ["--data", "DATA", "--truth-judge", "cria", "--information-judge", "nowhere"],
            "no such file or folder: nowhere",
        ),
        (["--max-tokens", "600"], "no prompt of refusal leaves room"),
        (["-m", "nowhere"], "no such file or folder: nowhere"),
    ],
)
def test_what_cannot_be_measured(tmp_path: Path, arguments: list[str], problem: str) -> None:
    folder = data(tmp_path / "data")
    given = [str(folder) if each == "DATA" else each for each in arguments]
    done = run(safety_command, "-m", "cria", "--out", tmp_path / "out", *given)
    assert problem in done.output + str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run(safety_command, "-m", "cria", "--out", tmp_path)
    assert "holds other things" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
