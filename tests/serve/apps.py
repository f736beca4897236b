"""Small ASGI apps, and a server for them on the loopback, in this process or another."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from puna.serve.access_log import AccessLog
from puna.serve.asgi import App, Message, Receive, Scope, Send
from puna.serve.deadlines import Deadline, Stopping
from puna.serve.facts import facts_of
from puna.serve.gate import Admission, Gate
from puna.serve.keys import Keys, RequireKey
from puna.serve.limits import BodyLimit
from puna.serve.listening import bind
from puna.serve.running import RunOptions, make_server, run

KEY = "sk-0123456789abcdef"


async def answer(send: Send, body: bytes, status: int = 200, kind: bytes = b"text/plain") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    return body


def make_app(stopping: Stopping | None = None, steps: int = 10, pause: float = 0.05) -> App:
    """`/echo` gives the body's length, `/stream` events of tokens, `/partial` half an answer,
    `/fail` raises, `/ready` says whether the server stops."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        body = await read_body(receive)
        match scope["path"]:
            case "/echo":
                await answer(send, str(len(body)).encode())
            case "/stream" | "/partial":
                kind = b"text/event-stream" if scope["path"] == "/stream" else b"text/plain"
                headers = [(b"content-type", kind)]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                for step in range(steps):
                    event = f"data: {step}\n\n".encode()
                    facts_of(scope).took_tokens(1)
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                    await asyncio.sleep(pause)
                await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            case "/slow":
                await asyncio.sleep(steps * pause)
                await answer(send, b"slow")
            case "/fail":
                raise RuntimeError("the app broke")
            case "/ready":
                is_stopping = stopping is not None and stopping.begun
                await answer(send, b"ready", 503 if is_stopping else 200)
            case _:
                await answer(send, b"no such page", 404)

    return app


async def request(
    app: App,
    path: str = "/echo",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    chunks: tuple[bytes, ...] = (b"",),
    query: bytes = b"",
    state: dict[str, Any] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """One request below HTTP: status (0 for no answer), headers, body. After its chunks the client
    waits for the answer's end."""
    scope = {
        "type": "http", "method": method, "path": path, "query_string": query,
        "state": {} if state is None else state,
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        "client": ("127.0.0.1", 4242),
    }  # fmt: skip
    pending = [
        {"type": "http.request", "body": chunk, "more_body": i + 1 < len(chunks)}
        for i, chunk in enumerate(chunks)
    ]
    over = asyncio.Event()
    sent: list[Message] = []

    async def receive() -> Message:
        if pending:
            return pending.pop(0)
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            over.set()

    await app(scope, receive, send)
    if not sent:
        return 0, {}, b""
    names = {name.decode(): value.decode() for name, value in sent[0].get("headers", [])}
    return sent[0]["status"], names, b"".join(m.get("body", b"") for m in sent[1:])


def memory_log() -> tuple[logging.Logger, io.StringIO]:
    """An access log that is kept here."""
    text = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(text))
    return logger, text


def lines(text: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.getvalue().splitlines()]


@contextmanager
def serving(app: App, options: RunOptions, listener: socket.socket | None = None) -> Iterator[int]:
    """The app on a free port of the loopback, in a thread; yields the port."""
    listener = listener or bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    started = threading.Event()
    server = make_server(app, listener, Stopping(), options, lambda url: started.set())
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert started.wait(30)
        yield port
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def main() -> int:
    """The whole server around the small app, as a process: options as JSON in the arguments."""
    given = json.loads(sys.argv[1])
    stopping = Stopping()
    keys = Keys([("alice", KEY)])
    app = make_app(stopping, steps=given.pop("steps", 10), pause=0.05)
    app = Admission(app, Gate(8), ["/stream"])
    app = BodyLimit(app, 1 << 16, 10)
    app = Deadline(app, stopping, None)
    if given.pop("keys", False):
        app = RequireKey(app, keys)
    logger = logging.Logger("access")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    app = AccessLog(app, logger, log_prompts=given.pop("log_prompts", False), redact=keys.redact)
    port = given.pop("port", 0)
    return run(
        app, bind("127.0.0.1", port), stopping, RunOptions(**given),
        lambda url: print(url, flush=True),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
