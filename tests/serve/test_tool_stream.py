"""An answer is read the same however it is cut into pieces, and wherever it ends."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count

import pytest

from puna.serve.tool_stream import (
    Answer,
    ArgumentsDelta,
    Call,
    CallStart,
    Event,
    TextDelta,
    new_call_id,
)

ARGUMENTS = ['{"a":"}\\"\\\\","b":[{"c":"<tool_call>{"}]}', "{}"]
CALLS = (
    ' <tool_call>{"name":"get-it","arguments":' + ARGUMENTS[0] + "}"
    '\n<tool_call>{"name":"now","arguments":' + ARGUMENTS[1] + "}"
)


def answer(choice: str) -> Answer:
    ids: Iterator[int] = count()
    return Answer(choice, lambda: f"call_{next(ids)}")


def read(choice: str, pieces: Sequence[str], reason: str = "stop") -> tuple[Answer, str]:
    """An answer, after checking that its events say what it says."""
    found, events = answer(choice), list[Event]()
    for piece in pieces:
        events += found.push(piece)
    rest, reason = found.finish(reason)
    events += rest
    text, calls = "", list[Call]()
    for event in events:
        match event:
            case TextDelta():
                assert event.text and not calls
                text += event.text
            case CallStart():
                assert event.index == len(calls)
                calls.append(Call(event.id, event.name))
            case ArgumentsDelta():
                assert event.text and event.index == len(calls) - 1
                calls[-1].arguments += event.text
    assert (found.content or "") == text and found.calls == calls
    return found, reason


def cuts(text: str) -> Iterator[list[str]]:
    yield [text]
    yield list(text)
    for seed in range(30):
        places = sorted(random.Random(seed).sample(range(len(text) + 1), min(4, len(text))))
        yield [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("text", [CALLS, CALLS[1:]])
def test_calls_are_read_however_they_are_cut(choice: str, text: str) -> None:
    for pieces in cuts(text):
        found, reason = read(choice, pieces)
        assert (found.content, reason) == (None, "tool_calls")
        assert found.calls == [
            Call("call_0", "get-it", ARGUMENTS[0]),
            Call("call_1", "now", ARGUMENTS[1]),
        ]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (" Once upon", "Once upon"),
        ("Once", "Once"),
        ("  Once", " Once"),
        ("<tool", "<tool"),
        (" <tool_cards> {}", "<tool_cards> {}"),
        ("<<tool_", "<<tool_"),
        ('{"a":1}', '{"a":1}'),
        ("", ""),
        (" ", ""),
    ],
)
def test_text_is_read_however_it_is_cut(text: str, content: str) -> None:
    for pieces in cuts(text):
        found, reason = read("auto", pieces)
        assert (found.content, found.calls, reason) == (content, [], "stop")


def test_where_nothing_may_be_called_all_is_text() -> None:
    found, reason = read("none", list(CALLS))
    assert (found.content, found.calls, reason) == (CALLS, [], "stop")


def test_text_comes_as_soon_as_it_cannot_be_a_call() -> None:
    found = answer("auto")
    assert found.push(" ") == found.push("<tool_") == []
    assert found.push("x") == [TextDelta("<tool_x")]
    assert found.push("<") == [TextDelta("<")]


def test_arguments_come_as_they_are_written() -> None:
    found = answer("auto")
    assert found.push(CALLS[: CALLS.index("{")]) == []
    assert found.push('{"name":"f","arguments":') == [CallStart(0, "call_0", "f")]
    assert found.push('{"a') == [ArgumentsDelta(0, '{"a')]
    assert found.push('":1}}\n') == [ArgumentsDelta(0, '":1}')]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_that_is_cut_is_the_length_and_so_far(choice: str) -> None:
    begins, tag_end = CALLS.index(ARGUMENTS[0]), CALLS.index("{")
    for end in range(len(CALLS)):
        found, reason = read(choice, [CALLS[:end]], "length")
        assert reason == "length"
        could_be_text = choice == "auto" and end < tag_end
        assert found.content == (CALLS[1:end] if could_be_text else None)
        assert bool(found.calls) == (end >= begins)
        if found.calls:
            assert found.calls[0].arguments == ARGUMENTS[0][: end - begins]


def test_a_stop_string_within_a_call_is_no_call() -> None:
    assert read("auto", [CALLS[:60]])[1] == "stop"
    assert read("auto", [CALLS[: CALLS.index("\n")]])[1] == "tool_calls"


def test_ids_differ() -> None:
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100 and all(i.startswith("call_") for i in ids)
