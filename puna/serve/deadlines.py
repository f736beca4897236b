"""When an answer must be whole: its own time limit, and the end of a server that stops."""

from __future__ import annotations

import asyncio
import json

from puna.serve.asgi import App, Message, Receive, Scope, Send
from puna.serve.errors import APIError, error_type, send_error
from puna.serve.facts import facts_of


class Stopping:
    """Whether the server stops, and the clocks of the requests that it then waits for."""

    def __init__(self) -> None:
        self.begun = False  # no new work; `/ready` says so
        self.is_cut = False  # no more time for work under way
        self.timers: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        self.begun = True

    def cut(self) -> None:
        """Lets the time of every request be over now."""
        self.is_cut = True
        now = asyncio.get_running_loop().time()
        for timer in self.timers:
            if not timer.expired():
                timer.reschedule(now)


class Deadline:
    """ASGI: breaks off an answer that takes too long, or longer than the server lives.

    If nothing was sent yet, the answer is an error; a stream of events ends with an error event;
    whatever else was begun is left without its end, so that no client takes it for whole.
    """

    def __init__(self, app: App, stopping: Stopping, seconds: float | None) -> None:
        """`seconds`: from the request's headers to the answer's end; None for no limit."""
        self.app = app
        self.stopping = stopping
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        is_started = is_complete = is_events = False

        async def watched_send(message: Message) -> None:
            nonlocal is_started, is_complete, is_events
            await send(message)
            if message["type"] == "http.response.start":
                is_started = True
                is_events = any(
                    name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in message.get("headers", [])
                )
            elif message["type"] == "http.response.body":
                is_complete = not message.get("more_body", False)

        timer = asyncio.timeout(0 if self.stopping.is_cut else self.seconds)
        try:
            async with timer:
                self.stopping.timers.add(timer)
                try:
                    await self.app(scope, receive, watched_send)
                finally:
                    self.stopping.timers.discard(timer)
        except TimeoutError:
            if not timer.expired():
                raise
        if not timer.expired() or is_complete:
            return None
        error = self._error()
        facts_of(scope).error = error_type(error.status)
        if not is_started:
            return await send_error(send, error)
        if is_events:
            event = f"data: {json.dumps(error.body())}\n\n".encode()
            await send({"type": "http.response.body", "body": event, "more_body": False})
        return None

    def _error(self) -> APIError:
        headers = {"Connection": "close"}
        if self.stopping.is_cut:
            message = "The server stops: send the request to another, or again later."
            return APIError(
                503, message, kind="server_error", code="server_stopping", headers=headers
            )
        message = f"The answer was not whole within {self.seconds:g} seconds."
        return APIError(504, message, kind="server_error", code="timeout", headers=headers)
