"""Ghost Attention: where the instruction stands, what is learned, who obeys."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from puna.chat import Message, encode_dialog
from puna.data.text import records
from puna.evaluate.wilson import wilson
from puna.tokenizer import Tokenizer
from puna.train.producers.gatt import Task, ghosted, instructed, plan, synthesize, write_examples
from puna.train.producers.gatt_instructions import (
    KINDS,
    Check,
    Instruction,
    combined,
    draw_combined,
    has_words,
    read_instructions,
)
from puna.train.producers.obedience import by_turn, measure
from puna.train.producers.plots import plot_obedience
from puna.train.sampling import Answer, Dialog

SHOUT = Instruction("Always shout.", "Shout.", (Check(str.isupper),))
TURNS = ("Hi", "How are you?", "Bye")


def repeat(
    dialogs: Sequence[Dialog], *, count: int, temperature: float, seeds: Sequence[int]
) -> list[list[Answer]]:
    """Answers with what the last turn says; loudly where it says to shout."""
    assert count == 1
    return [
        [Answer(last.upper() if "shout" in last else last)]
        for last in (dialog[-1].content for dialog in dialogs)
    ]


def test_the_instruction_stands_in_front_of_every_turn() -> None:
    assert instructed(TURNS, ["a", "b"], "Shout.") == [
        Message("system", "Shout."),
        Message("user", "Hi"),
        Message("assistant", "a"),
        Message("user", "Shout. How are you?"),
        Message("assistant", "b"),
        Message("user", "Shout. Bye"),
    ]
    assert instructed(TURNS, [], "Shout.")[1:] == [Message("user", "Hi")]


def test_the_example_has_it_once_and_learns_the_last_answer(tokenizer: Tokenizer) -> None:
    messages = ghosted(TURNS, ["a", "b"], "Shout.")["messages"]
    assert messages == [
        {"role": "system", "content": "Shout."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "b", "weight": 1},
    ]
    encode_dialog(tokenizer, [Message(m["role"], m["content"]) for m in messages])


def test_kinds_combine() -> None:
    both = combined({"figure": "Napoleon", "hobby": "tennis"})
    assert both.text == "Always act as Napoleon from now on. You enjoy tennis."
    assert both.short == "Figure: Napoleon. Hobby: tennis."
    figure, hobby = both.checks
    assert figure.obeyed("I am the Emperor!") and not figure.obeyed("I am an assistant.")
    assert hobby.obeyed("Tennis, of course.") and not hobby.obeyed("Football.")
    assert figure.probe == "Who are you?"


def test_all_kinds_are_drawn_and_a_draw_is_its_seed() -> None:
    drawn = [draw_combined(random.Random(seed)) for seed in range(60)]
    assert {len(each.checks) for each in drawn} == {1, 2, 3}
    assert drawn[7].text == draw_combined(random.Random(7)).text
    assert len({each.text for each in drawn}) > 40


def test_a_language_shows_in_two_words() -> None:
    french = KINDS["language"].values["French"]
    assert has_words("Je suis ici.", french, 2)
    assert not has_words("Je je je", french, 2)
    for language, words in KINDS["language"].values.items():
        assert not has_words("I am here, and in the house it is nice.", words, 2), language


def test_the_plan() -> None:
    dialogs = [("a", "b"), ("c",), ("d", "e", "f")]
    as_they_are = plan(dialogs, lambda g: SHOUT, count=4, turns=None, seed=1)
    assert [task.user_turns for task in as_they_are] == [dialogs[0], dialogs[2]] * 2
    drawn = plan(dialogs, lambda g: SHOUT, count=200, turns=4, seed=1)
    assert {len(task.user_turns) for task in drawn} == {2, 3, 4}
    assert drawn[4].user_turns[0] == "c"
    short = sum(task.learned_text == SHOUT.short for task in drawn)
    assert 70 < short < 130
    assert drawn[:9] == plan(dialogs, lambda g: SHOUT, count=9, turns=4, seed=1)
    with pytest.raises(ValueError, match="two user turns"):
        plan([("c",)], lambda g: SHOUT, count=1, turns=None, seed=1)
    with pytest.raises(ValueError, match="2 turns or more, not 1"):
        plan(dialogs, lambda g: SHOUT, count=1, turns=1, seed=1)


def make(path: Path, tasks: list[Task], **more: Any) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"fits": lambda dialog: True, "temperature": 0, "seed": 1, "chunk": 2}
    synthesize(path, tasks, more.pop("sampler", repeat), {}, **options | more)
    return list(records(path))


def test_dialogs_grow_turn_by_turn(tmp_path: Path) -> None:
    tasks = [Task(TURNS[:n], SHOUT, "Shout.") for n in (2, 3, 3)]
    found = make(tmp_path / "dialogs.jsonl", tasks)
    assert [record["ended"] for record in found] == [None] * 3
    first = "Hi"
    second = "ALWAYS SHOUT. HOW ARE YOU?"
    assert [record["answers"][:2] for record in found] == [[first, second]] * 3
    assert [len(record["answers"]) for record in found] == [2, 3, 3]
    counts = write_examples(tmp_path / "dialogs.jsonl", tasks, tmp_path / "sft.jsonl")
    assert counts == {
        "dialogs": 3,
        "examples": 3,
        "mean_turns": 8 / 3,
        "ended_early": {},
        "left_out": {},
    }
    assert next(records(tmp_path / "sft.jsonl")) == ghosted(TURNS, [first, second], "Shout.")


def test_dialogs_that_end_early(tmp_path: Path) -> None:
    tasks = [Task(TURNS, SHOUT, "Shout.") for _ in range(3)]
    calls = 0

    def sampler(
        dialogs: Sequence[Dialog], *, count: int, temperature: float, seeds: Sequence[int]
    ) -> list[list[Answer]]:
        nonlocal calls
        calls += 1
        # Turn by turn, of all three: the last turns of the first two are no answers.
        return [
            [Answer("", True) if calls == 2 and n == 0 else Answer("A", calls < 3 or n == 1)]
            for n in range(len(dialogs))
        ]

    path = tmp_path / "dialogs.jsonl"
    found = make(path, tasks, sampler=sampler, chunk=3)
    assert [record["ended"] for record in found] == ["empty", "cut off", None]
    assert [len(record["answers"]) for record in found] == [1, 2, 3]
    counts = write_examples(path, tasks, tmp_path / "sft.jsonl")
    assert counts["examples"] == 2
    assert counts["ended_early"] == {"empty": 1, "cut off": 1}
    assert counts["left_out"] == {"fewer than two turns": 1}


def test_what_does_not_fit_and_does_not_obey(tmp_path: Path) -> None:
    tasks = [Task(TURNS, instruction, "x") for instruction in (SHOUT, Instruction("Hush", "H"))]
    path = tmp_path / "dialogs.jsonl"
    found = make(path, tasks, fits=lambda dialog: len(dialog) < 6)
    assert [record["ended"] for record in found] == ["too long"] * 2
    assert [len(record["answers"]) for record in found] == [2, 2]
    never = Instruction(SHOUT.text, SHOUT.short, (Check(str.islower), Check(str.isdigit, "How?")))
    tasks[0] = Task(TURNS, never, "x")
    counts = write_examples(path, tasks, tmp_path / "sft.jsonl", only_obeying=True)
    assert counts["left_out"] == {"does not obey": 1}
    assert counts["examples"] == 1


def forgetful(
    dialogs: Sequence[Dialog], *, count: int, temperature: float, seeds: Sequence[int]
) -> list[list[Answer]]:
    """Shouts for as long as there are fewer than three answers; knows its name for one."""
    found = []
    for dialog in dialogs:
        answers = sum(message.role == "assistant" for message in dialog)
        name = "napoleon" if answers < 1 else "nobody"
        text = name if dialog[-1].content == "Who are you?" else "well"
        found.append([Answer(text.upper() if answers < 3 else text)])
    return found


def test_obedience_by_turn(tmp_path: Path) -> None:
    path = tmp_path / "obedience.jsonl"
    figure = combined({"figure": "Napoleon"})
    options: dict[str, Any] = {"turns": 5, "temperature": 0, "seed": 1, "chunk": 2}
    measure(
        path, [SHOUT, SHOUT, figure], ["q", "r"], forgetful, {},
        fits=lambda dialog: len(dialog) < 10 or dialog[0].content != figure.text, **options,
    )  # fmt: skip
    assert [record["obeyed"] for record in records(path)] == [
        [True, True, True, False, False],
        [True, True, True, False, False],
        [True, False, False, False],
    ]
    turns = by_turn(path, wilson)
    assert [(turn["turn"], turn["obeyed"], turn["dialogs"]) for turn in turns] == [
        (1, 3, 3), (2, 2, 3), (3, 2, 3), (4, 0, 3), (5, 0, 2),
    ]  # fmt: skip
    assert turns[1]["low"] < turns[1]["share"] == 2 / 3 < turns[1]["high"]
    picture = plot_obedience({"with": turns, "without": turns[:2]}, tmp_path / "o.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000


@pytest.mark.parametrize(
    ("instructions", "questions", "turns", "message"),
    [
        ([Instruction("Hush", "H")], ["q"], 2, "nothing shows whether 'Hush'"),
        ([SHOUT], [], 2, "no questions"),
        ([SHOUT], ["q"], 0, "1 or more, not 0"),
    ],
)
def test_what_cannot_be_measured(
    tmp_path: Path, instructions: Any, questions: Any, turns: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(
            tmp_path / "o.jsonl", instructions, questions, forgetful, {},
            turns=turns, fits=lambda dialog: True, temperature=0, seed=1,
        )  # fmt: skip


def test_instructions_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "i.jsonl"
    path.write_text(
        '{"instruction": "End with ahoy.", "short": "Ahoy.", "pattern": "ahoy\\\\W*$"}\n'
        '{"instruction": "You are Ann.", "pattern": "ann", "probe": "Who are you?"}\n'
        '{"instruction": "Be brief."}\n'
    )
    ahoy, ann, brief = read_instructions(path)
    assert (ahoy.short, ann.short, brief.checks) == ("Ahoy.", "You are Ann.", ())
    assert ahoy.checks[0].obeyed("Hello! Ahoy!") and not ahoy.checks[0].obeyed("Ahoy, hello!")
    assert ann.checks[0].probe == "Who are you?"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "no field 'instruction'"),
        ([], "no field 'instruction'"),
        ({"instruction": 3}, "instruction is a text"),
        ({"instruction": "a", "pattern": "("}, "no regular expression"),
        ({"instruction": "a", "probe": "b"}, "needs the pattern"),
        ({"instruction": "a", "short": "<<SYS>>"}, "reserved"),
    ],
)
def test_instructions_that_are_none(tmp_path: Path, record: Any, message: str) -> None:
    path = tmp_path / "i.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=rf"i\.jsonl, record 1: .*{message}"):
        read_instructions(path)
