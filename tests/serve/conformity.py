"""Holds all that the app sends against what its API document says it sends."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError

from puna.serve import responses
from puna.serve.asgi import App, Message, Receive, Scope, Send

# Path -> shape of the whole answer, and of an event.
SHAPES: list[tuple[str, type[responses.Shape], type[responses.Shape] | None]] = [
    (r"(/v1)?/models", responses.ModelList, None),
    (r"(/v1)?/models/.+", responses.ModelCard, None),
    (r"(/v1)?/completions", responses.CompletionResponse, responses.CompletionResponse),
    (r"(/v1)?/chat/completions", responses.ChatResponse, responses.ChatEvent),
    (r"(/v1)?/embeddings", responses.EmbeddingResponse, None),
    (r"/tokenize", responses.TokenizeResponse, None),
    (r"/detokenize", responses.DetokenizeResponse, None),
    (r"/tokenizer_info", responses.TokenizerInfo, None),
    (r"/health|/ready", responses.Status, None),
]


class Conforming:
    """Passes everything through; what does not conform is told in `problems`."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.problems: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, status, kind = bytearray(), 0, ""

        async def checked(message: Message) -> None:
            nonlocal status, kind
            if message["type"] == "http.response.start":
                headers = dict(message.get("headers", []))
                status, kind = message["status"], headers.get(b"content-type", b"").decode()
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                # Before the client has the end, so that a test sees what it caused.
                if not message.get("more_body") and status != 499:
                    try:
                        check(scope["path"], status, kind, bytes(body))
                    except (AssertionError, ValidationError, ValueError) as error:
                        self.problems.append(f"{scope['method']} {scope['path']}: {error}")
            await send(message)

        await self.app(scope, receive, checked if scope["type"] == "http" else send)


def check(path: str, status: int, kind: str, body: bytes) -> None:
    """Raises for an answer that is not as the document says."""
    found = [pair for pattern, *pair in SHAPES if re.fullmatch(pattern, path)]
    if status >= 400:
        assert kind == "application/json", kind
        error = responses.ErrorResponse.model_validate_json(body, strict=True)
        assert error.error.message and error.error.type
    elif found:
        ((whole, event),) = found[-1:]
        if kind.startswith("text/event-stream"):
            assert event, "a stream where there is none"
            _check_events(body, event)
        else:
            assert kind == "application/json", kind
            whole.model_validate_json(body, strict=True)
            json.loads(body, parse_constant=_refuse)


def _check_events(body: bytes, shape: type[responses.Shape]) -> None:
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == "", "the last event is cut off"
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    if data[-1] == "[DONE]":
        data.pop()
    else:
        responses.ErrorResponse.model_validate_json(data.pop(), strict=True)
    heads = set()
    for text in data:
        shape.model_validate_json(text, strict=True)
        event = json.loads(text, parse_constant=_refuse)
        heads.add((event["id"], event["created"], event["model"], event["object"]))
    assert len(heads) <= 1, "the events are of several answers"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
