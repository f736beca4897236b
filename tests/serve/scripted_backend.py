"""The web chat in front of answers that are written here: an OpenAI-shaped server with a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from puna.serve.pages import page_routes

# What a request is answered with: pieces of text, or a status with its error.
Answer = list[str] | tuple[int, dict[str, Any]]
Script = Callable[[dict[str, Any]], Answer]

FOREVER = "\x00forever"  # a piece after which the answer never ends
BREAK = "\x00break"  # a piece in whose place an error is sent


class Backend:
    """A scripted server; `script` may be exchanged, `requests` are the bodies so far."""

    def __init__(self, script: Script, key: str | None = None, models: tuple[str, ...] = ("cria",)):
        self.script = script
        self.key = key
        self.models = models
        self.requests: list[dict[str, Any]] = []
        self.pause = 0.0  # seconds between pieces

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                *page_routes(),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return _error(401, "the API key is missing or not known", "invalid_api_key")

    async def _models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"data": [{"id": id} for id in self.models]})

    async def _chat(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.requests.append(body)
        answer = self.script(body)
        if isinstance(answer, tuple):
            status, error = answer
            return _error(status, error["message"], error.get("code"), error.get("headers"))
        return StreamingResponse(self._stream(answer), media_type="text/event-stream")

    async def _stream(self, pieces: list[str]) -> AsyncIterator[str]:
        for piece in pieces:
            if piece == FOREVER:
                while True:
                    await asyncio.sleep(0.05)
                    yield _event({"choices": [_choice({"content": " more"})]})
            if piece == BREAK:
                yield _event({"error": {"message": "the engine failed", "type": "server_error"}})
                return
            yield _event({"choices": [_choice({"content": piece})]})
            await asyncio.sleep(self.pause)
        usage = {"prompt_tokens": 7, "completion_tokens": len(pieces)}
        yield _event({"choices": [_choice({}, "stop")]})
        yield _event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _choice(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _error(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status, headers)
