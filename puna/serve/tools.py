"""OpenAI's tools for a model that has no format of its own for them: ours, held to by a grammar.

An answer is text, or calls, one a line and nothing else (Llama 2 was trained on no such format; the
tag is the one of the Hermes models):

    <tool_call>{"name":"get_weather","arguments":{"city":"Paris"}}

The functions stand in the system prompt. Results come back in the next user turn, one a line, the
result as a JSON string, so that no result can look like another or like what the user says:

    <tool_response>{"name":"get_weather","content":"22 C, sunny"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from puna.chat import TAGS
from puna.serve.schemas import Schema, constraint, dump

CALL, RESPONSE = "<tool_call>", "<tool_response>"
TOOL_TAGS = (CALL, RESPONSE)
NAME_RULE = "^[a-zA-Z0-9_-]{1,64}$"
NAME = re.compile(NAME_RULE)
CHOICES = ("none", "auto", "required")
MAX_CALLS = 16  # ours: calls in one answer

_INSTRUCTIONS = """\
You can call functions. To call one, answer with a line of this form and nothing else:
{call}
{several}The arguments must fit the function's JSON schema; results follow {response}. Functions:
{functions}"""
_SEVERAL = "For several calls, write several lines. "


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model may call; `arguments` is the schema that its arguments fit."""

    name: str
    text: str  # how the prompt describes it
    arguments: Schema


@dataclass(frozen=True, slots=True)
class Tools:
    """What a request lets the model call: nothing (`none`), or if it likes, or it must.

    `given` says whether the request had tools at all, callable or not.
    """

    functions: tuple[Function, ...] = ()
    choice: str = "none"
    parallel: bool = True
    given: bool = False

    def instructions(self) -> str:
        """What the system prompt says of them; empty where nothing may be called."""
        if self.choice == "none":
            return ""
        return _INSTRUCTIONS.format(
            call=f'{CALL}{{"name":NAME,"arguments":{{...}}}}',
            several=_SEVERAL if self.parallel else "",
            response=RESPONSE,
            functions="\n".join(function.text for function in self.functions),
        )

    def constraint(self, response_schema: Schema | None = None) -> dict[str, Any]:
        """The fields of `SamplingParams` that hold the output to calls, or to text.

        Text has no call and no tag in it, and fits `response_schema` if there is one.
        """
        if self.choice == "none":
            return {} if response_schema is None else {"json_schema": response_schema}
        return {"grammar": _grammar(self, response_schema)}


def read_tools(
    tools: object = None, tool_choice: object = None, parallel_tool_calls: object = None
) -> Tools:
    """A request's `tools`, `tool_choice` and `parallel_tool_calls`, checked.

    Naming a function leaves the model that one, once. Raises ValueError that begins with the field.
    """
    if parallel_tool_calls not in (None, True, False):
        raise ValueError("parallel_tool_calls: must be true or false")
    if tools is not None and not isinstance(tools, list):
        raise ValueError("tools: must be a list")
    functions: dict[str, Function] = {}
    for index, tool in enumerate(tools or []):
        function = _read_function(tool, f"tools[{index}]")
        if function.name in functions:
            raise ValueError(f"tools[{index}].function.name: there are two named {function.name!r}")
        functions[function.name] = function
    if tool_choice is None:
        tool_choice = "auto" if functions else "none"
    parallel = parallel_tool_calls is not False
    if isinstance(tool_choice, str) and tool_choice in CHOICES:
        if not functions and tool_choice != "none":
            raise ValueError(f"tool_choice: {tool_choice!r} needs tools")
        return Tools(tuple(functions.values()), tool_choice, parallel, bool(functions))
    named = _read_named(tool_choice)
    if named not in functions:
        raise ValueError(f"tool_choice: no function of tools is named {named!r}")
    return Tools((functions[named],), "required", False, True)


def refuse_tags(text: str, where: str, tags: tuple[str, ...] = TAGS) -> None:
    """ValueError for text from outside that forges a tag."""
    for tag in tags:
        if tag in text:
            raise ValueError(f"{where}: contains {tag}, which is reserved")


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the grammar makes it."""
    return f"{CALL}{_head(name)}{dump(arguments)}}}"


def response_text(name: str, content: str) -> str:
    """The result of a call, as the model is shown it."""
    return RESPONSE + dump({"name": name, "content": content})


def _head(name: str) -> str:
    return f'{{"name":{dump(name)},"arguments":'


def _read_function(tool: object, where: str) -> Function:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise ValueError(f"{where}.type: only tools of type 'function' are known")
    given, where = tool.get("function"), f"{where}.function"
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: must be an object with a name")
    name, description = given.get("name"), given.get("description")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{where}.name: must match {NAME_RULE}")
    if description is not None and not isinstance(description, str):
        raise ValueError(f"{where}.description: must be text")
    if given.get("strict") not in (None, True, False):
        raise ValueError(f"{where}.strict: must be true or false")
    parameters = given.get("parameters")
    if parameters is None:  # OpenAI: an empty parameter list
        parameters = {"type": "object", "properties": {}}
    described = {"name": name, "description": description, "parameters": parameters}
    return Function(
        name,
        _described({key: value for key, value in described.items() if value is not None}, where),
        _arguments(parameters, f"{where}.parameters", strict=given.get("strict") is True),
    )


def _described(function: Mapping[str, Any], where: str) -> str:
    try:
        text = dump(function)
    except RecursionError:
        raise ValueError(f"{where}.parameters: it is nested too deeply") from None
    refuse_tags(text, where, (*TAGS, *TOOL_TAGS))
    return text


def _arguments(parameters: object, where: str, *, strict: bool) -> Schema:
    if isinstance(parameters, dict) and parameters.get("type", "object") != "object":
        raise ValueError(f"{where}.type: must be 'object', not {parameters['type']!r}")
    if isinstance(parameters, dict):
        parameters = {"type": "object", **parameters}
    return constraint(parameters, where, strict=strict)


def _read_named(tool_choice: object) -> str:
    function = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(tool_choice, Mapping) or tool_choice.get("type") != "function":
        name = None
    if not isinstance(name, str):
        raise ValueError(
            f"tool_choice: must be {', '.join(CHOICES)} or "
            '{"type": "function", "function": {"name": ...}}'
        )
    return name


def _grammar(tools: Tools, response_schema: Schema | None) -> str:
    """llguidance's Lark. The first word of an answer may come with its space, or without."""
    calls = [f"call_{index}" for index in range(len(tools.functions))]
    more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if tools.parallel else ""
    rules = {
        "start": "answer",
        "answer": "FIRST call_body" + more,
        "call": f"{json.dumps(CALL)} call_body",
        "call_body": " | ".join(calls),
        "FIRST": f'" "? {json.dumps(CALL)}',
    }
    if tools.choice == "auto":
        rules["start"] = "answer | text"
        rules["text"] = "TEXT" if response_schema is None else f"%json {dump(response_schema)}"
        # Text forges no turn and no call; a slash would end the expression.
        tags = "|".join(re.escape(tag).replace("/", r"\x2F") for tag in (CALL, *TAGS))
        rules["TEXT"] = f"/(?s:.*)/ & ~/(?s:.*)({tags})(?s:.*)/"
    for rule, function in zip(calls, tools.functions, strict=True):
        head, arguments = json.dumps(_head(function.name)), dump(function.arguments)
        rules[rule] = f'{head} %json {arguments} "}}"'
    return "\n".join(f"{name}: {body}" for name, body in rules.items())
