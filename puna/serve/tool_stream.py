"""Reads an answer as it comes: text, or the calls of `puna.serve.tools`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from puna.serve.tools import CALL

# A call up to its arguments; before all but the first, the end of the one before.
_HEAD = re.compile(
    r"(?:\}\n)?" + re.escape(CALL) + r'\{"name":"([a-zA-Z0-9_-]{1,64})","arguments":'
)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """Call number `index` begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the JSON text of call number `index`'s arguments."""

    index: int
    text: str


Event = TextDelta | CallStart | ArgumentsDelta


@dataclass(slots=True)
class Call:
    """A call so far; `arguments` is JSON text, broken off where the output was."""

    id: str
    name: str
    arguments: str = ""


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


class Answer:
    """An output that is read. Texts are pushed as they come; `finish` ends it.

    `choice` is that of `Tools`: with `none` all is text. `content` is None while there is no text,
    and stays so beside calls. What may still become a call is held back.
    """

    def __init__(self, choice: str, new_id: Callable[[], str] = new_call_id) -> None:
        self.content: str | None = None
        self.calls: list[Call] = []
        self._choice, self._new_id = choice, new_id
        self._held = ""
        self._arguments: JSONEnd | None = None  # of the call that is being written
        self._read = self._text if choice == "none" else self._start

    def push(self, text: str) -> list[Event]:
        """What the text adds."""
        self._held += text
        events: list[Event] = []
        reader = None
        while self._held and reader is not self._read:
            reader = self._read
            events += reader()
        return events

    def finish(self, reason: str) -> tuple[list[Event], str]:
        """What was held back, and the finish reason given the engine's.

        `tool_calls` where the output ended with a whole call; one that was cut is the engine's.
        """
        events: list[Event] = []
        if self._choice != "required" and self._read in (self._start, self._text):
            self._held = self._held.removeprefix(" ")
            events = self._text()
            self.content = self.content or ""
        self._held = ""
        whole = bool(self.calls) and self._arguments is not None and self._arguments.found
        return events, "tool_calls" if whole and reason == "stop" else reason

    def _start(self) -> list[Event]:
        """Text or a call? The first word's space belongs to neither."""
        rest = self._held.removeprefix(" ")
        if rest.startswith(CALL):
            self._held, self._read = rest, self._head
        elif not CALL.startswith(rest):
            self._held, self._read = rest, self._text
        return []

    def _text(self) -> list[Event]:
        text, self._held = self._held, ""
        if not text:
            return []
        self.content = (self.content or "") + text
        return [TextDelta(text)]

    def _head(self) -> list[Event]:
        match = _HEAD.match(self._held)
        if match is None:
            return []
        call = Call(self._new_id(), match[1])
        self.calls.append(call)
        self._held = self._held[match.end() :]
        self._arguments, self._read = JSONEnd(), self._body
        return [CallStart(len(self.calls) - 1, call.id, call.name)]

    def _body(self) -> list[Event]:
        assert self._arguments is not None
        length = self._arguments.push(self._held)
        text, self._held = self._held[:length], self._held[length:]
        if self._arguments.found:
            self._read = self._head
        self.calls[-1].arguments += text
        return [ArgumentsDelta(len(self.calls) - 1, text)]


class JSONEnd:
    """Finds where a JSON object ends that comes in pieces."""

    def __init__(self) -> None:
        self.found = False
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str) -> int:
        """How many characters of the text belong to the object."""
        for position, char in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.found = True
                    return position + 1
        return len(text)
