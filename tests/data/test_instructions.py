"""Forms of instruction files, and what is wrong with a record."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from puna.chat import Message
from puna.data.instructions import FORMS, dialogs

USER, ANSWER = Message("user", "Hi"), Message("assistant", "Hello.")
# Form -> a record of it that says: Hi - Hello.
RECORDS: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    },
    "ShareGPT": {
        "id": "x",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}],
    },
    "Alpaca": {"instruction": "Hi", "input": "", "output": "Hello."},
    "P3": {"prompt": "Hi", "completion": "Hello.<|endoftext|>", "template": "t"},
    "Dolly": {"prompt": "Hi", "response": "Hello."},
}  # fmt: skip


def jsonl(folder: Path, *records: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_every_form_has_an_example() -> None:
    assert [form.name for form in FORMS] == list(RECORDS)


@pytest.mark.parametrize("form", RECORDS)
def test_forms(tmp_path: Path, form: str) -> None:
    record = RECORDS[form]
    (found,) = dialogs(jsonl(tmp_path, record))
    assert found.messages == (USER, ANSWER) and found.learned == (False, True)
    assert found.place == f"{tmp_path / 'data.jsonl'}, line 1"
    # As one list, and packed.
    path = tmp_path / "data.json.gz"
    path.write_bytes(gzip.compress(json.dumps([record, record], indent=1).encode()))
    assert [each.messages for each in dialogs(path)] == [found.messages] * 2


def test_what_the_forms_say_besides(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1},
    ]  # fmt: skip
    (found,) = dialogs(jsonl(tmp_path, {"messages": turns}))
    assert [message.role for message in found.messages] == [turn["role"] for turn in turns]
    assert found.learned == (False, False, False, False, True)
    said = {"system": "Be kind.", **RECORDS["ShareGPT"]}
    (found,) = dialogs(jsonl(tmp_path, said))
    assert found.messages == (Message("system", "Be kind."), USER, ANSWER)
    (found,) = dialogs(jsonl(tmp_path, {"instruction": "Add.", "input": "1 2", "output": "3"}))
    assert found.messages[0].content == "Add.\n\n1 2"


BAD = {
    "not valid JSON": '{"messages": [}',
    "not a JSON object": "[1]",
    "no known form; known are messages": '{"text": "a"}',
    "form messages: the field 'messages' is no list": '{"messages": 3}',
    "message 1 is no object": '{"messages": ["a"]}',
    "message 1: the field 'role' is no string": '{"messages": [{"content": "a"}]}',
    "role 'tool' is none of": '{"messages": [{"role": "tool", "content": "a"}]}',
    "the field 'content' is no string": '{"messages": [{"role": "user", "content": null}]}',
    "this is 0.5": '{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}',
    "an assistant's": '{"messages": [{"role": "user", "content": "a", "weight": 1}]}',
    "from 'bing' is none of": '{"conversations": [{"from": "bing", "value": "a"}]}',
    "form Alpaca: the field 'output'": '{"instruction": "a", "output": 1}',
}


@pytest.mark.parametrize("problem", BAD)
def test_bad_records_are_told_with_their_line(tmp_path: Path, problem: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + BAD[problem] + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"data.jsonl, line 2.*{problem}"):
        list(dialogs(path))


def test_a_file_is_of_one_form(tmp_path: Path) -> None:
    path = jsonl(tmp_path, RECORDS["Alpaca"], RECORDS["P3"])
    with pytest.raises(ValueError, match="line 2, form Alpaca: the field 'instruction'"):
        list(dialogs(path))


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("data.csv", "a,b", "unknown kind of instruction file"),
        ("data.json", '{"a": 1}\n{"a": 2}', "call it .jsonl"),
        ("data.json", '{"a": 1}', "is a list of records"),
        ("data.json", "[" * 100_000, "nested too deep|not valid JSON"),
        ("data.json", "[3]", "record 1: not a JSON object"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=problem):
        list(dialogs(tmp_path / name))
    with pytest.raises(ValueError, match="no such text file"):
        list(dialogs(tmp_path / "absent.jsonl"))
