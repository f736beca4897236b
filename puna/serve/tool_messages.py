"""OpenAI's messages, with calls and results of tools, as a Llama 2 dialog."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from puna.chat import TAGS, Message
from puna.serve.tools import (
    NAME,
    NAME_RULE,
    TOOL_TAGS,
    Tools,
    call_text,
    refuse_tags,
    response_text,
)

# OpenAI's role -> Llama 2's; results come in the user's turns.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
}


def dialog_of(messages: Sequence[Mapping[str, Any]], tools: Tools | None = None) -> list[Message]:
    """The dialog that OpenAI's `messages` are, the functions of `tools` told in the system prompt.

    Results of one answer's calls are one turn, in the order of the calls, with what the user says
    directly after them. Raises ValueError, `messages[3]: ...`, for what is no message, text that
    forges a tag, content other than text, and results that do not answer the calls before them.
    What else is out of order stays as it is: `puna.chat` refuses it.
    """
    tools = tools or Tools()
    told = tools.given or any(_has_tools(message) for message in messages)
    tags = (*TAGS, *TOOL_TAGS) if told else TAGS
    turns: list[Message] = []
    waiting = _Results()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"{where}.role: must be {', '.join(ROLES)}, not {role!r}")
        if role == "tool":
            waiting.add(message, where, tags)
            continue
        text = _text(message, where, TAGS if role == "assistant" else tags)
        results = waiting.take(where)
        if results and role == "user":
            turns.append(Message("user", f"{results}\n\n{text}"))
            continue
        if results:
            turns.append(Message("user", results))
        if role == "assistant":
            text = waiting.ask(message, text, where)
        turns.append(Message(ROLES[role], text))
    results = waiting.take("messages")
    if results:
        turns.append(Message("user", results))
    return _instructed(turns, tools.instructions())


class _Results:
    """The calls of the last answer, and the results that have come."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # of the functions, by call id
        self._contents: dict[str, str] = {}

    def ask(self, message: Mapping[str, Any], text: str, where: str) -> str:
        """An answer's text, and its calls, one a line."""
        calls = message.get("tool_calls")
        if not calls and message.get("content") is None:
            raise ValueError(f"{where}: an assistant message needs content or tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise ValueError(f"{where}.tool_calls: must be a list")
        lines = [text] if text else []
        for index, call in enumerate(calls or []):
            place = f"{where}.tool_calls[{index}]"
            call_id, name, line = _read_call(call, place)
            if call_id in self._names:
                raise ValueError(f"{place}.id: there are two calls {call_id!r}")
            self._names[call_id] = name
            lines.append(line)
        return "\n".join(lines)

    def add(self, message: Mapping[str, Any], where: str, tags: tuple[str, ...]) -> None:
        """Takes a result."""
        call_id = message.get("tool_call_id")
        if not isinstance(call_id, str) or call_id not in self._names:
            raise ValueError(
                f"{where}.tool_call_id: no call {call_id!r} in the assistant message before it"
            )
        if call_id in self._contents:
            raise ValueError(f"{where}.tool_call_id: there is a result of {call_id!r} already")
        self._contents[call_id] = _text(message, where, tags)

    def take(self, where: str) -> str:
        """The results as the model is shown them, empty if there were no calls; forgets them."""
        missing = [call_id for call_id in self._names if call_id not in self._contents]
        if missing:
            raise ValueError(f"{where}: no tool message before it answers {', '.join(missing)}")
        lines = [response_text(name, self._contents[i]) for i, name in self._names.items()]
        self._names, self._contents = {}, {}
        return "\n".join(lines)


def _has_tools(message: object) -> bool:
    return isinstance(message, Mapping) and bool(
        message.get("role") == "tool" or message.get("tool_calls")
    )


def _text(message: Mapping[str, Any], where: str, tags: tuple[str, ...]) -> str:
    """The text of a message's content; empty for the null of an answer that only calls."""
    content, where = message.get("content"), f"{where}.content"
    if content is None and message["role"] == "assistant":
        return ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise ValueError(f"{where}: must be text, or a list of text parts")
    refuse_tags(content, where, tags)
    return content


def _part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise ValueError(f"{where}: only text parts are supported, not {kind!r}")
    return text


def _read_call(call: object, where: str) -> tuple[str, str, str]:
    """A call's id, its function's name, and its line."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise ValueError(f"{where}: must be a call of a function")
    call_id, name = call.get("id"), function.get("name")
    if not isinstance(call_id, str) or not call_id:
        raise ValueError(f"{where}.id: must be text")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{where}.function.name: must match {NAME_RULE}")
    given = function.get("arguments")
    problem = f"{where}.function.arguments: must be the JSON text of an object"
    try:
        arguments = json.loads(given) if isinstance(given, str) else None
        line = call_text(name, arguments) if isinstance(arguments, dict) else None
    except (ValueError, RecursionError):
        raise ValueError(problem) from None
    if line is None:
        raise ValueError(problem)
    refuse_tags(line, where)
    return call_id, name, line


def _instructed(turns: list[Message], instructions: str) -> list[Message]:
    """The dialog with the instructions after what its system message says."""
    if not instructions:
        return turns
    if turns and turns[0].role == "system":
        return [Message("system", f"{turns[0].content}\n\n{instructions}"), *turns[1:]]
    return [Message("system", instructions), *turns]
