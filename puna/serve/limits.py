"""How large a request's body may be, and how long it may take to come."""

from __future__ import annotations

import asyncio

from puna.serve.asgi import App, Message, Receive, Scope, Send, header_values
from puna.serve.errors import APIError, send_error

LINGER_SECONDS = 2.0  # in which a refused client may go on sending and still read the answer


class BodyLimit:
    """ASGI: takes in the body before the app runs, so that it sees whole and lawful ones only.

    Whoever leaves meanwhile never reaches the app.
    """

    def __init__(self, app: App, max_bytes: int, seconds: float) -> None:
        """`max_bytes`: of a body; `seconds`: in which it must have come, from first to last."""
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if _content_length(scope) > self.max_bytes:
            return await self._refuse_size(scope, receive, send)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self.max_bytes or not message.get("more_body", False):
                        break
        except TimeoutError:
            error = APIError(
                408,
                f"The request's body did not come within {self.seconds:g} seconds.",
                code="request_timeout",
                headers={"Connection": "close"},
            )
            return await send_error(send, error)
        if size > self.max_bytes:
            return await self._refuse_size(scope, receive, send)
        return await self.app(scope, _replay(b"".join(chunks), receive), send)

    async def _refuse_size(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = APIError(
            413,
            f"The request's body is larger than {self.max_bytes} bytes.",
            code="request_too_large",
            headers={"Connection": "close"},
        )

        async def send_open(message: Message) -> None:
            last = message["type"] == "http.response.body"
            await send({**message, "more_body": True} if last else message)

        await send_error(send_open, error)
        # To close on bytes that were not read resets the connection, and the answer may be lost.
        # Who waits for "100 Continue" has sent nothing, and must not be told to.
        if not header_values(scope, b"expect"):
            await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _content_length(scope: Scope) -> int:
    """What the header says; 0 without one, which chunked bodies have not."""
    lengths = [value for value in header_values(scope, b"content-length") if value.isdigit()]
    return int(lengths[0][:20]) if lengths else 0


async def _discard(receive: Receive) -> None:
    """Reads what still comes, for a while, and keeps none of it."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body as one message, then what else comes: the disconnect."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
