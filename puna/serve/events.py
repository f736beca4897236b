"""Answers that stop when nobody waits for them: whole ones, and streams of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response

from puna.serve.asgi import Receive, Scope, Send
from puna.serve.errors import DISCONNECTED, as_api_error, error_type
from puna.serve.facts import facts_of

T = TypeVar("T")

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
_DONE = b"data: [DONE]\n\n"
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

Event = dict[str, Any]


class GoneError(Exception):
    """The client has left."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Cancels it and raises GoneError as soon as the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class WholeAnswer(Response):
    """One JSON object, computed while the client waits."""

    def __init__(self, work: Coroutine[Any, Any, Event]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await unless_gone(receive, self._work)
        except GoneError:
            # Nobody gets it; the access log does.
            await Response(status_code=DISCONNECTED)(scope, receive, send)
        else:
            await JSONResponse(body)(scope, receive, send)


class EventStream(Response):
    """Events as they come, then `[DONE]`.

    What goes wrong before the first is an ordinary error; after it, an event, which ends the
    stream, for the status has been sent.
    """

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        super().__init__()
        self._events = events
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._whole(scope, send))
        except GoneError:
            if not self._started:
                await Response(status_code=DISCONNECTED)(scope, receive, send)

    async def _whole(self, scope: Scope, send: Send) -> None:
        try:
            await self._send(send)
        except Exception as error:
            if not self._started:
                raise
            problem = as_api_error(error)
            facts_of(scope).error = error_type(problem.status)
            await _send(send, _line(problem.body()), more=False)
        finally:
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        async for event in self._events:
            if not self._started:
                start = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
                await send(start)
                self._started = True
            await _send(send, _line(event))
        await _send(send, _DONE, more=False)


async def _send(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


def _line(event: Event) -> bytes:
    return b"data: " + _JSON.encode(event).encode() + b"\n\n"
