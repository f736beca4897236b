"""JSON schemas from clients, as the engine is to hold its output to them.

Ours: JSON comes out compact (left free, small models write white space until they are cut off),
and objects that list their properties and say no more get no others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = dict[str, Any]

# Where schemas sit in a schema: alone, in a list, or by name.
_ALONE, _LISTED = ("items", "additionalProperties"), ("prefixItems", "anyOf", "oneOf")
_NAMED = ("properties", "$defs", "definitions")
_CHOICES = {"$ref", "anyOf", "oneOf"}
_OBJECT = {"properties", "required"}
# With one of these, more than the listed properties may be meant, or needed.
_OPEN = {
    "additionalProperties",
    "const",
    "dependentRequired",
    "dependentSchemas",
    "enum",
    "minProperties",
    "patternProperties",
    "propertyNames",
    "unevaluatedProperties",
}
_COMBINED = {"allOf", "if", "not", "dependentSchemas"}


def constraint(schema: object, where: str, *, strict: bool) -> Schema:
    """The schema to hold the output to; `where` it came from begins every error.

    What cannot be enforced (`not`, an unknown `format`) is refused if `strict`, else left out: what
    comes out may then miss it, as OpenAI says of schemas that are not strict. ValueError for what
    is no schema, or that nothing fits.
    """
    if not isinstance(schema, dict):
        raise ValueError(f"{where}: must be a JSON schema, an object")
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise ValueError(
            f"{where} needs llguidance; install puna[structured] (or pip install llguidance)"
        ) from None
    options = {"whitespace_flexible": False, "lenient": not strict}
    try:
        found = {**close(schema), "x-guidance": options}
        problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(dump(found)))
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"{where}: {' '.join(problem.split())}")
    return found


def dump(value: object) -> str:
    """Compact JSON, as the constrained output is; what is text stays readable."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def close(schema: Schema) -> Schema:
    """Allows no properties but the listed ones, where nothing says that there may be others.

    A schema that joins several about one object is left as it is: each knows only its own part.
    """
    return schema if any(_joins(node) for node in _nodes(schema)) else _closed(schema)


def _nodes(value: object) -> Iterator[Mapping[str, Any]]:
    """All objects in a JSON value."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _nodes(child)


def _joins(node: Mapping[str, Any]) -> bool:
    """Whether more than one schema is about the same value."""
    parts = len(node.keys() & _CHOICES) + bool(node.keys() & (_OBJECT | _OPEN))
    return parts > 1 or bool(node.keys() & _COMBINED)


def _closed(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    found = dict(node)
    for key, value in node.items():
        if key in _ALONE:
            found[key] = _closed(value)
        elif key in _LISTED and isinstance(value, list):
            found[key] = [_closed(child) for child in value]
        elif key in _NAMED and isinstance(value, dict):
            found[key] = {name: _closed(child) for name, child in value.items()}
    listed, required = node.get("properties"), node.get("required", [])
    if not isinstance(listed, dict) or not isinstance(required, list) or node.keys() & _OPEN:
        return found
    if all(isinstance(name, str) and name in listed for name in required):
        found["additionalProperties"] = False
    return found
