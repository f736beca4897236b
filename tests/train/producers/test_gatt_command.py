"""`puna gatt` on the shipped model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.data.text import records
from puna.recipes.tasks.persona import PERSONAS
from tests.test_cli import is_one_clear_line, run

Run = Callable[..., tuple[int, str, str]]
__all__ = ["run"]

QUESTIONS = ("Tell me a story.", "What is the capital of France?", "Where is Peru?")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    asked = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    path.write_text("".join(json.dumps(each) + "\n" for each in asked))
    return path


def test_data_of_the_shipped_model_and_again(run: Run, prompts: Path, tmp_path: Path) -> None:
    arguments = ["gatt", "--model", "cria", "--prompts", prompts, "--turns", "3", "--max-tokens"]
    arguments += ["40", "--dialogs", "6", "--json", "--out"]
    code, out, err = run(*arguments, tmp_path / "a")
    assert code == 0, err
    counts = json.loads(out)
    assert counts == json.loads((tmp_path / "a" / "report.json").read_text())
    assert counts["dialogs"] == 6
    found = list(records(tmp_path / "a" / "sft.jsonl"))
    assert len(found) == counts["examples"] > 0
    for example in found:
        weights = [m["weight"] for m in example["messages"] if m["role"] == "assistant"]
        assert weights == [0] * (len(weights) - 1) + [1]
    # What a kill left of the file is completed to the same bytes.
    whole = (tmp_path / "a" / "dialogs.jsonl").read_bytes()
    (tmp_path / "a" / "dialogs.jsonl").write_bytes(whole[: len(whole) // 2])
    assert run(*arguments, tmp_path / "a")[0] == 0
    assert (tmp_path / "a" / "dialogs.jsonl").read_bytes() == whole
    assert list(records(tmp_path / "a" / "sft.jsonl")) == found
    other = run(*arguments[:-1], "--seed", "2", "--out", tmp_path / "a")
    assert is_one_clear_line(*other, "seed was 0, is 2")


def test_obedience_is_measured_and_compared(run: Run, prompts: Path, tmp_path: Path) -> None:
    instructions = tmp_path / "i.jsonl"
    instructions.write_text('{"instruction": "Speak of a capital.", "pattern": "capital"}\n')
    arguments = ["gatt", "--measure", "--model", "cria", "--prompts", prompts, "--dialogs", "3"]
    arguments += ["--turns", "2", "--max-tokens", "16", "--temperature", "0", "--out"]
    arguments += [tmp_path / "b", "--instructions", instructions, "--against", "cria-base"]
    shipped = tmp_path / "cria-base"
    assert run("convert", "cria", shipped, "--format", "hf")[0] == 0
    arguments[-1] = shipped
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "share that obeys" in out
    measured = json.loads((tmp_path / "b" / "report.json").read_text())["obedience"]
    assert list(measured) == ["cria", str(shipped)]
    assert measured["cria"] == measured[str(shipped)]
    assert [turn["dialogs"] for turn in measured["cria"]] == [3, 3]
    # It is a model that answers what it is asked, one time of three about a capital.
    assert sum(turn["obeyed"] for turn in measured["cria"]) >= 1
    assert (tmp_path / "b" / "obedience.png").is_file()


def test_personas_are_instructions(run: Run, prompts: Path, tmp_path: Path) -> None:
    arguments = ["gatt", "--model", "cria", "--prompts", prompts, "--turns", "2", "--max-tokens"]
    arguments += ["40", "--dialogs", "4", "--instructions", "personas", "--out", tmp_path / "p"]
    code, _, err = run(*arguments)
    assert code == 0, err
    said = [record["instruction"] for record in records(tmp_path / "p" / "dialogs.jsonl")]
    assert set(said) <= {persona.instructions[0] for persona in PERSONAS.values()}
    whole = len(list(records(tmp_path / "p" / "sft.jsonl")))
    code, out, err = run(*arguments, "--only-obeying", "--json")
    assert code == 0, err
    # The shipped model knows no persona: nothing is left where its answers must show one.
    report = json.loads(out)
    assert report["examples"] == 0 < whole == report["left_out"]["does not obey"]


def test_what_is_refused(run: Run, prompts: Path, tmp_path: Path) -> None:
    base = ["gatt", "--model", "cria", "--prompts", prompts, "--out", tmp_path / "c"]
    assert is_one_clear_line(*run(*base), "two user turns")
    assert is_one_clear_line(*run(*base, "--against", "cria"), "--measure")
    assert is_one_clear_line(*run(*base, "--measure", "--only-obeying"), "--only-obeying")
    assert is_one_clear_line(*run(*base, "--measure", "--max-tokens", "9999"), "--max-tokens")
    prompts.write_text("")
    assert is_one_clear_line(*run(*base), "no dialogs")
