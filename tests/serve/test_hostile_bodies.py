"""Bodies that are meant to break the server: each is refused, and nobody else notices."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serve.servers import Running, until

USER = {"role": "user", "content": "hi"}
JSON = {"content-type": "application/json"}
DEEP = b"[" * 100_000
# name -> body, for every path that takes one.
BODIES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "text": b'"a"',
    "cut off": b'{"prompt": "a',
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "deep": b'{"prompt": ' + DEEP,
    "deep and closed": b'{"prompt": ' + DEEP + b"]" * 100_000 + b"}",
    "deep unknown": b'{"zzz": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinite": b'{"prompt": "a", "temperature": 1e999}',
    "huge integer": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "huge count": b'{"prompt": "a", "max_tokens": 99999999999999999999999}',
    "huge id": b'{"prompt": [99999999999999999999999]}',
    "huge ids": b'{"tokens": [99999999999999999999999]}',
    "negative id": b'{"tokens": [-1]}',
    "boolean ids": b'{"prompt": [true, false]}',
    "mixed": b'{"prompt": ["a", 1, [2]]}',
    "unknown": b'{"prompt": "a", "__proto__": {}}',
    "control": b'{"prompt": "a\x00\x01"}',
    "bias": b'{"prompt": "a", "logit_bias": {"1e3": 1, "-1": 2, "\\ud800": 3}}',
    "many prompts": json.dumps({"prompt": ["a"] * 10_000}).encode(),
    "many outputs": json.dumps({"prompt": ["a"] * 200, "n": 100}).encode(),
    "long": json.dumps({"prompt": "llama " * 500_000}).encode(),
    "too large": b'{"prompt": "' + b"a" * (5 << 20) + b'"}',
}
PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"]
# Taken or refused, each for a reason of its own.
ODD: dict[str, bytes] = {
    "UTF-16": '{"prompt": "a", "max_tokens": 1}'.encode("utf-16"),
    "twice": b'{"prompt": "a", "prompt": "b", "max_tokens": 1}',
    "surrogate": b'{"prompt": "a \\ud800 b", "max_tokens": 1}',
    "surrogate stop": b'{"prompt": "a", "stop": "\\udfff", "max_tokens": 1}',
    "surrogate model": b'{"prompt": "a", "model": "\\ud800"}',
    "surrogate field": b'{"prompt": "a", "\\ud800": 1}',
    "null character": b'{"prompt": "\\u0000", "max_tokens": 1}',
    "regex": b'{"prompt": "a", "regex": "\\ud800"}',
    "grammar": b'{"prompt": "a", "grammar": "start: \\"\\ud800\\""}',
}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


SCHEMAS: dict[str, dict[str, Any]] = {
    "multiple": {"anyOf": [{"type": "integer", "multipleOf": 999_983 + 2 * i} for i in range(99)]},
    "patterns": {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(200)]},
    "nested": _nested(400),
    "itself": {"$ref": "#"},
    "circle": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "elsewhere": {"$ref": "http://127.0.0.1:1/schema"},
    "file": {"$ref": "file:///etc/passwd"},
    "many": {"enum": [f"{i:08d}" * 2 for i in range(100_000)]},
}
GRAMMARS: dict[str, dict[str, str]] = {
    "repeats": {"regex": "(((a{1,100}){1,100}){1,100}){1,100}"},
    "brackets": {"regex": "(" * 20_000},
    "and": {"grammar": "start: T\nT: " + " & ".join(f"/.*{i}.*/" for i in range(100))},
    "lexer": {"grammar": "start: T\nT: /(.*a.{20})/ & /(.*b.{25})/ & ~/(.*c.{22}.*)/"},
    "deep": {"grammar": "start: " + "(" * 50_000 + '"a"' + ")" * 50_000},
    "nothing": {"grammar": "start: a\na: a"},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", BODIES)
def test_a_broken_body_is_refused(server: Running, path: str, name: str) -> None:
    if name == "long" and path == "/tokenize":
        return  # it is only long
    with server.http() as http:
        answer = http.post(path, content=BODIES[name], headers=JSON)
        assert answer.status_code in (400, 413), answer.text[:300]
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("name", ODD)
def test_an_odd_body_is_no_error_of_the_server(server: Running, name: str) -> None:
    with server.http() as http:
        for path in PATHS:
            assert http.post(path, content=ODD[name], headers=JSON).status_code in (200, 400, 404)


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data", ""])
def test_a_body_of_another_type_is_refused(server: Running, kind: str) -> None:
    with server.http() as http:
        answer = http.post("/v1/completions", content=b"a=b", headers={"content-type": kind})
        assert answer.status_code == 400


@pytest.mark.parametrize("name", [*SCHEMAS, *GRAMMARS])
def test_a_bomb_stalls_nobody(server: Running, name: str) -> None:
    if name in SCHEMAS:
        form = {"name": "x", "schema": SCHEMAS[name]}
        path, body = (
            "/v1/chat/completions",
            {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": form}},
        )
    else:
        path, body = "/v1/completions", {"prompt": "a", **GRAMMARS[name]}
    with server.http() as http, ThreadPoolExecutor() as pool:
        bomb = pool.submit(http.post, path, json=body)
        # Others are answered before the bomb is, or it is quick.
        while True:
            found = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
            assert found.status_code == 200
            if bomb.done():
                break
        assert bomb.result().status_code == 400
    until(server.is_idle, "the engine is free")
