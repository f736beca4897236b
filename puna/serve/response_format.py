"""OpenAI's `response_format`: the schema that the answer must fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.serve.schemas import Schema, constraint

WHERE = "response_format"


def response_schema(response_format: object) -> Schema | None:
    """The schema of the answer, for `SamplingParams.json_schema`; None where any text will do.

    `json_object` may bring a `schema` of its own, as llama.cpp's server takes it. ValueError for
    another shape, and for what is no schema.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise ValueError(f"{WHERE}: must be an object")
    kind = response_format.get("type")
    if kind != "json_object" and "schema" in response_format:
        raise ValueError(f"{WHERE}.schema: goes with json_object; json_schema has its own")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema", {"type": "object"})
        return constraint(schema, f"{WHERE}.schema", strict=False)
    if kind == "json_schema":
        return _named_schema(response_format.get("json_schema"), f"{WHERE}.json_schema")
    raise ValueError(f"{WHERE}.type: must be text, json_object or json_schema, not {kind!r}")


def _named_schema(given: Any, where: str) -> Schema:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: must be an object with a schema")
    strict = given.get("strict")
    if strict not in (None, True, False):
        raise ValueError(f"{where}.strict: must be true or false")
    return constraint(given.get("schema"), f"{where}.schema", strict=bool(strict))
