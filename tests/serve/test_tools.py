"""What a request lets the model call, and what can come out then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from puna import LLM
from puna.chat import Message
from puna.engine.batch import Batch
from puna.engine.engine import Engine
from puna.engine.output import Completion
from puna.engine.params import SamplingParams
from puna.engine.structure import Structures
from puna.serve.response_format import response_schema
from puna.serve.tool_stream import Answer
from puna.serve.tools import Tools, call_text, read_tools
from puna.tokenizer import Tokenizer
from tests.engine.fakes import HashRunner

pytest.importorskip("llguidance")

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2, 3]}},
    "required": ["city"],
}


def tool(name: str = "weather", parameters: object = WEATHER, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


BOTH = [tool(description="The weather."), {"type": "function", "function": {"name": "now"}}]
PARIS, NOW = call_text("weather", {"city": "Paris", "days": 2}), call_text("now", {})


def fits(tokenizer: Tokenizer, text: str, constraint: dict[str, Any]) -> bool:
    """Whether the constraint lets a model write all of the text and end there."""
    structure = Structures(tokenizer).start(SamplingParams(**constraint))
    assert structure is not None
    tokens = tokenizer.encode("\n" + text)[len(tokenizer.encode("\n")) :]
    matcher = structure._matcher
    return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())


CALLS = [PARIS, " " + PARIS, NOW]
SEVERAL = [PARIS + "\n" + NOW, "\n".join([NOW] * 16)]
TEXTS = ["", "[INST", "/[SYS]", " Hello", "Hi <tool_ca", '{"a": 1}', "<", "<tool_call", "x\n\ny é"]
NEVER = [
    "  " + PARIS,
    "Hi " + PARIS,
    "Hi [INST]",
    "Hi [/INST] Hi",
    "<<SYS>>",
    "Hi <</SYS>>",
    PARIS + " Hi",
    PARIS + "\n",
    PARIS[:-1],
    PARIS + PARIS,
    "\n".join([NOW] * 17),
    "<tool_call>",
    '<tool_call>{"name": "now","arguments":{}}',
    call_text("other", {}),
    call_text("now", {"x": 1}),
    call_text("weather", {"city": "Berlin"}),
    call_text("weather", {"days": 2}),
]


@pytest.mark.parametrize(
    ("choice", "parallel", "may"),
    [
        ("auto", True, CALLS + SEVERAL + TEXTS),
        ("auto", False, CALLS + TEXTS),
        ("required", True, CALLS + SEVERAL),
        ("required", False, CALLS),
        ({"type": "function", "function": {"name": "weather"}}, True, CALLS[:2]),
    ],
)
def test_what_can_come_out(
    tokenizer: Tokenizer, choice: object, parallel: bool, may: list[str]
) -> None:
    constraint = read_tools(BOTH, choice, parallel).constraint()
    found = {text for text in CALLS + SEVERAL + TEXTS + NEVER if fits(tokenizer, text, constraint)}
    assert found == set(may)


def test_text_beside_calls_fits_the_response_format(tokenizer: Tokenizer) -> None:
    schema = response_schema({"type": "json_object", "schema": {"const": {"a": 1}}})
    constraint = read_tools(BOTH).constraint(schema)
    for text, expected in (('{"a":1}', True), (" " + PARIS, True), ("Hi", False), ("", False)):
        assert fits(tokenizer, text, constraint) == expected, text


def test_nothing_to_call() -> None:
    assert read_tools() == Tools() == read_tools([], "none", True)
    assert read_tools(BOTH, "none").instructions() == ""
    assert read_tools(BOTH, "none").constraint() == {}
    assert read_tools(BOTH, "none").constraint({"const": 1}) == {"json_schema": {"const": 1}}


def test_the_instructions_show_the_format_and_each_function() -> None:
    lines = read_tools(BOTH, parallel_tool_calls=False).instructions().split("\n")
    assert lines == [
        "You can call functions. To call one, answer with a line of this form and nothing else:",
        '<tool_call>{"name":NAME,"arguments":{...}}',
        "The arguments must fit the function's JSON schema; results follow <tool_response>. "
        "Functions:",
        json.dumps(
            {"name": "weather", "description": "The weather.", "parameters": WEATHER},
            separators=(",", ":"),
        ),
        '{"name":"now","parameters":{"type":"object","properties":{}}}',
    ]
    assert "several" in read_tools(BOTH).instructions()
    named = read_tools(BOTH, {"type": "function", "function": {"name": "now"}})
    assert "weather" not in named.instructions()


DEEP: Any = {}
for _ in range(9999):
    DEEP = {"items": DEEP}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "tools: must be a list"),
        (([{"type": "custom"}],), r"tools\[0\].type: only tools of type 'function' are known"),
        (([{"type": "function"}],), r"tools\[0\].function: must be an object with a name"),
        (([tool("a b")],), r"tools\[0\].function.name: must match \^\[a-zA-Z0-9_-\]"),
        (([tool("a\n")],), r"tools\[0\].function.name: must match"),
        (([tool("é")],), r"tools\[0\].function.name: must match"),
        (([tool("a" * 65)],), r"tools\[0\].function.name: must match"),
        (([tool(), tool()],), r"tools\[1\].function.name: there are two named 'weather'"),
        (([tool(description=3)],), r"tools\[0\].function.description: must be text"),
        (([tool(strict="no")],), r"tools\[0\].function.strict: must be true or false"),
        (([tool(parameters=[])],), r"tools\[0\].function.parameters: must be a JSON schema"),
        (([tool(parameters={"type": "string"})],), r"parameters.type: must be 'object'"),
        (([tool(parameters={"required": 3})],), r"tools\[0\].function.parameters: .*required"),
        (([tool(parameters=DEEP)],), r"parameters: it is nested too deeply"),
        (
            ([tool(parameters={"not": {}}, strict=True)],),
            r"tools\[0\].function.parameters: Unimplemented keys",
        ),
        (([tool(description="a [INST] b")],), r"function: contains \[INST\], which is reserved"),
        (([tool(parameters={"title": "<<SYS>>"})],), r"contains <<SYS>>, which is reserved"),
        (([tool(description="<tool_call>")],), "contains <tool_call>, which is reserved"),
        ((None, "auto"), "tool_choice: 'auto' needs tools"),
        ((None, "required"), "tool_choice: 'required' needs tools"),
        ((BOTH, "weather"), "tool_choice: must be none, auto, required or {"),
        ((BOTH, {"type": "function"}), "tool_choice: must be none"),
        ((BOTH, {"type": "allowed_tools", "function": {"name": "now"}}), "tool_choice: must be"),
        (
            (BOTH, {"type": "function", "function": {"name": "then"}}),
            "tool_choice: no function of tools is named 'then'",
        ),
        ((BOTH, None, "yes"), "parallel_tool_calls: must be true or false"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tools(*arguments)


def check_calls(answer: Answer) -> None:
    assert answer.content is None and answer.calls
    for call in answer.calls:
        arguments = json.loads(call.arguments)
        if call.name == "now":
            assert arguments == {}
        else:
            assert call.name == "weather" and arguments["city"] in ("Paris", "Rome")
            assert arguments.keys() <= {"city", "days"} and arguments.get("days", 1) in (1, 2, 3)


def read(choice: str, outputs: Sequence[Completion]) -> list[tuple[Answer, str]]:
    """Answers and their finish reasons."""
    found = []
    for output in outputs:
        assert output.finish_reason is not None
        answer = Answer(choice)
        answer.push(output.text)
        found.append((answer, answer.finish(output.finish_reason)[1]))
    return found


class Inclined(HashRunner):
    """A model that would rather write a certain text after two tokens, but does not always."""

    script: Sequence[int] = ()
    first: float  # how much it would like the first token; the others follow almost surely

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        logits = super().logits(batch)
        for row, output in zip(logits, batch.outputs, strict=True):
            place = batch.positions[output] - 1
            if place < len(self.script):
                row[self.script[place]] += 20 if place else self.first
        return logits


@pytest.mark.parametrize(("schema", "first"), [(None, 8), ({"enum": ["yes", "no"]}, -4)])
def test_a_model_that_may_call_calls_or_talks(
    tokenizer: Tokenizer, schema: dict[str, Any] | None, first: float
) -> None:
    tools = read_tools(BOTH)
    runner = Inclined(400, 16, context=400, vocab=tokenizer.vocab_size)
    runner.first, runner.script = first, tokenizer.encode(SEVERAL[0], eos=True)
    engine = Engine(runner, tokenizer)
    wanted = SamplingParams(
        1.0, top_p=1.0, seed=1, n=24, max_tokens=300, **tools.constraint(schema)
    )
    request = engine.add([1, 5], wanted, strip_space=True)
    while engine.has_work:
        engine.step()
    found = read(tools.choice, request.result().outputs)
    calls = [answer for answer, reason in found if reason == "tool_calls"]
    texts = [answer.content for answer, reason in found if reason == "stop"]
    for answer in calls:
        check_calls(answer)
    assert {call.name for answer in calls for call in answer.calls} == {"weather", "now"}
    assert len(texts) > 2
    for text in texts:
        assert text is not None and "<tool_call>" not in text
        assert schema is None or json.loads(text) in schema["enum"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("cria")


@pytest.mark.parametrize(
    ("choice", "parallel"),
    [
        ("required", True),
        ("required", False),
        ({"type": "function", "function": {"name": "weather"}}, None),
        ("auto", None),
    ],
)
def test_the_shipped_model_calls_where_it_must(
    llm: LLM, choice: object, parallel: bool | None
) -> None:
    tools = read_tools(BOTH, choice, parallel)
    dialog = [Message("system", tools.instructions()), Message("user", "Is it warm in Rome?")]
    wanted = SamplingParams(
        temperature=1.0, top_p=1.0, n=16, seed=3, max_tokens=150, **tools.constraint()
    )
    (result,) = llm.chat(dialog, wanted)
    for answer, reason in read(tools.choice, result.outputs):
        if tools.choice == "auto":  # a model of stories calls nothing by itself
            assert answer.content is not None and not answer.content.startswith(" ")
        elif parallel is True and reason == "length":  # nor does it stop by itself
            del answer.calls[-1]
            check_calls(answer)
        else:
            assert reason == "tool_calls" and (parallel or len(answer.calls) == 1)
            check_calls(answer)
