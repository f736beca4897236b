"""The access log: a line of JSON for each request, without what people wrote."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from puna.serve.asgi import App, Message, Receive, Scope, Send, header_values
from puna.serve.errors import DISCONNECTED
from puna.serve.facts import Facts, facts_of
from puna.serve.keys import MAX_KEY_LENGTH

MAX_METHOD = 32  # characters that are logged of it
MAX_PATH = 256
MAX_PROMPT = 4096  # of a body, if bodies are logged

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def open_log(path: Path | None) -> logging.Logger:
    """A logger that writes its messages as they are to a file, or to stderr if that is None.

    It is no child of the root logger, and nobody else's settings reach it. A file that was moved
    away (logrotate) is made anew. Raises ValueError for a file that cannot be written.
    """
    logger = logging.Logger("puna.access", logging.INFO)
    if path is None:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        return logger
    try:
        logger.addHandler(WatchedFileHandler(path, encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot write the log to {path}: {error.strerror}") from None
    return logger


def request_id(scope: Scope) -> str:
    """The client's `X-Request-Id` where it is short and plain, else a new one."""
    for value in header_values(scope, b"x-request-id"):
        if _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return f"req-{uuid.uuid4().hex}"


class AccessLog:
    """ASGI, outermost: names the request, says its name in the answer, logs it when it is over."""

    def __init__(
        self,
        app: App,
        logger: logging.Logger,
        *,
        log_prompts: bool = False,
        redact: Callable[[str], str] = str,
    ) -> None:
        """`log_prompts`: adds the body's first bytes; `redact`: takes API keys out of a text."""
        self.app = app
        self.logger = logger
        self.log_prompts = log_prompts
        self.redact = redact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        facts = facts_of(scope)
        facts.request_id = request_id(scope)
        status: int | None = None
        num_bytes = 0
        is_complete = False
        body = bytearray()

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not is_complete:
                facts.error = facts.error or "disconnected"
            elif self.log_prompts:
                # More than is logged, so that no key is cut off and then not known for one.
                missing = 4 * MAX_PROMPT + MAX_KEY_LENGTH - len(body)
                body.extend(message.get("body", b"")[:missing])
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status, num_bytes, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
                named = (b"x-request-id", facts.request_id.encode())
                message = {**message, "headers": [*message.get("headers", []), named]}
            else:
                num_bytes += len(message.get("body", b""))
                is_complete = not message.get("more_body", False)
            await send(message)

        unanswered = 500
        try:
            await self.app(scope, watched_receive, watched_send)
            unanswered = DISCONNECTED
        finally:
            line = self._line(scope, facts, status or unanswered, num_bytes)
            if self.log_prompts:
                line["body"] = self.redact(body.decode("utf-8", "replace"))[:MAX_PROMPT]
            self.logger.info("%s", json.dumps(line))
        return None

    def _line(self, scope: Scope, facts: Facts, status: int, num_bytes: int) -> dict[str, Any]:
        first = facts.first_token_at
        client = scope.get("client")
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": self.redact(facts.request_id),
            "key": facts.key_name,
            "client": client[0] if client else None,
            "method": self.redact(scope["method"])[:MAX_METHOD],
            "path": self.redact(scope["path"])[:MAX_PATH],
            "status": status,
            "error": facts.error,
            "model": facts.model,
            "prompt_tokens": facts.prompt_tokens,
            "completion_tokens": facts.completion_tokens,
            "ttft_ms": None if first is None else _milliseconds(first - facts.started_at),
            "duration_ms": _milliseconds(time.perf_counter() - facts.started_at),
            "bytes": num_bytes,
        }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
