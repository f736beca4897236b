"""Prompts in files: what is read, and what is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puna.chat import Message
from puna.data.prompts import Prompt, read_prompts, read_user_turns

ASK, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}


def write(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_prompts_and_their_labels(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    path = write(
        tmp_path / "a.jsonl",
        {"messages": [system, ASK, ANSWER, ASK]},
        {"messages": [ASK], "is_safety": True, "risk": "hateful", "more": 1},
    )
    user = Message("user", "Hi")
    assert read_prompts(path) == [
        Prompt((Message("system", "Be kind."), user, Message("assistant", "Yes?"), user)),
        Prompt((user,), is_safety=True, risk="hateful"),
    ]
    assert read_user_turns(path) == [("Hi", "Hi"), ("Hi",)]


def test_user_turns_of_answered_dialogs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": [ASK, ANSWER]})
    assert read_user_turns(path) == [("Hi",)]
    alpaca = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert read_user_turns(write(tmp_path / "b.jsonl", alpaca)) == [("Add.\n\n1, 2",)]
    sharegpt = {"conversations": [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": "A"}]}
    assert read_user_turns(write(tmp_path / "c.jsonl", sharegpt)) == [("A",)]
    with pytest.raises(ValueError, match=r"d\.jsonl, line 1: .*reserved"):
        read_user_turns(write(tmp_path / "d.jsonl", alpaca | {"instruction": "[INST]"}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"messages": [ASK, ANSWER]}, "ends with the assistant"),
        ({"messages": [ANSWER]}, "beginning with user"),
        ({"messages": []}, "no field 'messages'"),
        ([ASK], "no field 'messages'"),
        ({"messages": [{"role": "user"}]}, "needs a role and a content"),
        ({"messages": ["Hi"]}, "needs a role and a content"),
        ({"messages": [{"role": "user", "content": "[INST]"}]}, "reserved"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"messages": [ASK], "is_safety": 1}, "is_safety"),
        ({"messages": [ASK], "risk": 1}, "risk"),
    ],
)
def test_what_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": [ASK]}, value)
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{message}"):
        read_prompts(path)


def test_files_without_any(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="no prompts"):
        read_prompts(path)
    with pytest.raises(ValueError, match="no dialogs"):
        read_user_turns(path)
