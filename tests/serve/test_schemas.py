"""Schemas from clients, and what the engine makes under them, whatever the model would rather."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import jsonschema_rs
import pytest

from puna.engine.engine import Engine
from puna.engine.params import SamplingParams
from puna.serve.response_format import response_schema
from puna.serve.schemas import close, constraint
from puna.serve.tool_stream import Answer
from puna.serve.tools import read_tools
from puna.tokenizer import Tokenizer
from tests.engine.fakes import HashRunner

pytest.importorskip("llguidance")

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOSED = {**CITY, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (CITY, CLOSED),
        ({"type": "object"}, {"type": "object"}),
        ({"type": "array", "items": CITY}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [CITY, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        (
            {"$defs": {"A": CITY}, "$ref": "#/$defs/A"},
            {"$defs": {"A": CLOSED}, "$ref": "#/$defs/A"},
        ),
        (
            {"type": "object", "additionalProperties": CITY},
            {"type": "object", "additionalProperties": CLOSED},
        ),
        # More than the listed ones are meant, or needed.
        ({**CITY, "additionalProperties": True}, {**CITY, "additionalProperties": True}),
        ({**CITY, "minProperties": 2}, {**CITY, "minProperties": 2}),
        ({**CITY, "required": ["country"]}, {**CITY, "required": ["country"]}),
        # Each part knows only its own properties.
        ({"allOf": [CITY, CITY]}, {"allOf": [CITY, CITY]}),
        ({**CITY, "anyOf": [CITY]}, {**CITY, "anyOf": [CITY]}),
        ({"$defs": {"A": CITY}, "$ref": "#/$defs/A", "properties": {"b": {}}},) * 2,
        # A value is no schema.
        ({"const": {"properties": {}}}, {"const": {"properties": {}}}),
    ],
)
def test_listed_properties_are_all_where_nothing_says_otherwise(
    schema: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert close(schema) == expected


def test_what_cannot_be_enforced_is_refused_if_strict() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    assert constraint(schema, "here", strict=False)["x-guidance"]["lenient"]
    with pytest.raises(ValueError, match=r"^here: Unimplemented keys"):
        constraint(schema, "here", strict=True)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("json", "response_format: must be an object"),
        ({}, "response_format.type: must be text, json_object or json_schema, not None"),
        ({"type": "sound"}, "response_format.type: must be text, .*, not 'sound'"),
        ({"type": "json_schema"}, "response_format.json_schema: must be an object"),
        ({"type": "json_schema", "json_schema": {}}, r"json_schema.schema: must be a JSON schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}},
            r"json_schema.strict: must be true or false",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "hiccup"}}},
            r"response_format.json_schema.schema: Invalid type: hiccup",
        ),
        ({"type": "text", "schema": {}}, "response_format.schema: goes with json_object"),
        ({"type": "json_schema", "schema": {}}, "response_format.schema: goes with json_object"),
        ({"type": "json_object", "schema": 123}, "response_format.schema: must be a JSON schema"),
        ({"type": "json_object", "schema": {"enum": []}}, "response_format.schema: Unsatisfiable"),
        ({"type": "json_object", "schema": nested(200)}, "response_format.schema: recursion limit"),
        ({"type": "json_object", "schema": nested(9999)}, ".schema: it is nested too deeply"),
    ],
)
def test_a_response_format_that_is_none_is_refused(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        response_schema(given)


def test_any_text_is_no_schema() -> None:
    assert response_schema(None) is None
    assert response_schema({"type": "text"}) is None


def random_schema(draw: random.Random, depth: int) -> dict[str, Any]:
    """Of the kinds that clients send, each value short."""
    low = draw.randrange(-50, 50)
    kinds: list[dict[str, Any]] = [
        {"type": "string", "maxLength": draw.randrange(6)},
        {"type": "integer", "minimum": low, "maximum": low + draw.randrange(200)},
        {"type": "number", "minimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25},
        {"type": "boolean"},
        {"type": ["null", "boolean"]},
        {"enum": ["a", 'quo"te', "back\\slash", "é", 7, None]},
        {"const": {"x": [1]}},
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{2}$"},
        {"type": "string", "format": "date"},
    ]
    if depth:
        names = draw.sample(["id", "näme", "a b", '"', "x_y"], draw.randrange(4))
        kinds += [
            {
                "type": "object",
                "properties": {name: random_schema(draw, depth - 1) for name in names},
                "required": [name for name in names if draw.random() < 0.6],
            },
            {"type": "array", "items": random_schema(draw, depth - 1), "maxItems": 2},
            {"anyOf": [random_schema(draw, depth - 1) for _ in range(2)]},
        ] * 4
    return draw.choice(kinds)


def random_parameters(draw: random.Random) -> dict[str, Any]:
    """The parameters of a function, with a definition used twice as pydantic writes one."""
    return {
        "type": "object",
        "properties": {
            "one": random_schema(draw, 2),
            "two": {"$ref": "#/$defs/Two"},
            "more": {"type": "array", "items": {"$ref": "#/$defs/Two"}, "maxItems": 2},
        },
        "required": ["one", "two", "more"],
        "$defs": {"Two": random_schema(draw, 1)},
    }


def outputs(tokenizer: Tokenizer, count: int, **options: Any) -> list[str]:
    """What a model writes that knows nothing, under a constraint."""
    engine = Engine(HashRunner(200, 16, context=600, vocab=tokenizer.vocab_size), tokenizer)
    params = SamplingParams(1.0, top_p=1.0, seed=1, n=count, max_tokens=500, **options)
    request = engine.add([1, 5], params, strip_space=True)
    while engine.has_work:
        engine.step()
    found = request.result().outputs
    assert {output.finish_reason for output in found} == {"stop"}
    return [output.text for output in found]


@pytest.mark.parametrize("seed", range(12))
def test_answers_and_arguments_fit_random_schemas(tokenizer: Tokenizer, seed: int) -> None:
    schema = random_parameters(random.Random(seed))
    validator = jsonschema_rs.validator_for(schema)
    given = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
    for text in outputs(tokenizer, 3, json_schema=response_schema(given)):
        assert validator.is_valid(json.loads(text)), text
        assert text == text.strip() and "\n" not in text
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    tools = read_tools([tool], "required", False)
    for text in outputs(tokenizer, 3, **tools.constraint()):
        answer = Answer(tools.choice)
        answer.push(text)
        assert answer.finish("stop")[1] == "tool_calls"
        assert validator.is_valid(json.loads(answer.calls[0].arguments)), text


def test_a_missing_llguidance_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match=r"schema needs llguidance; install puna\[structured\]"):
        response_schema({"type": "json_object"})
