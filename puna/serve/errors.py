"""What went wrong, as OpenAI's API says it: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from puna.engine.async_llm import EngineStoppedError
from puna.engine.engine import ContextLengthError
from puna.serve.asgi import Send

# How errors begin that say which field they are about: `messages[3].content: ...`.
_FIELD = re.compile(r"([a-z_]+(?:\[\d+\]|\.[a-z_]+)*): ")

MAX_MESSAGE = 2000  # characters; some errors repeat what was sent
DISCONNECTED = 499  # the status of those that left before their answer began, as nginx counts

# Status -> type of error; `Facts.error` says it for streams that had begun.
ERRORS = {
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    408: "request_timeout",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    DISCONNECTED: "disconnected",
    503: "server_stopping",
    504: "timeout",
}
OTHER_ERRORS = {4: "invalid_request", 5: "internal"}  # by the status's first digit
ERROR_TYPES = frozenset(ERRORS.values()) | frozenset(OTHER_ERRORS.values())


class APIError(Exception):
    """An answer other than success: HTTP status, message for people, and what clients branch on."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message[:MAX_MESSAGE]
        self.kind = kind
        self.param = param and param[:MAX_MESSAGE]
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object that an OpenAI client parses."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


async def send_error(send: Send, error: APIError) -> None:
    """Sends the error as a whole HTTP answer, below any framework."""
    body = json.dumps(error.body()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **{name.lower(): value for name, value in error.headers.items()},
    }
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


def as_api_error(error: Exception) -> APIError:
    """What a client is told of an exception; of those that nobody foresaw, not what they say."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, EngineStoppedError):
        return APIError(503, str(error), kind="server_error", code="engine_stopped")
    if isinstance(error, ContextLengthError):
        # By this code clients know that a shorter prompt would do.
        return APIError(400, str(error), code="context_length_exceeded")
    if isinstance(error, ValueError):
        field = _FIELD.match(str(error))
        return APIError(400, str(error), param=field and field[1])
    return APIError(
        500, "the server failed at this; its log says how", kind="server_error", code="internal"
    )


def error_type(status: int) -> str | None:
    """The type of error that a status means; None for success."""
    return ERRORS.get(status, OTHER_ERRORS.get(status // 100))
