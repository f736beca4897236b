"""A model behind an OpenAI-compatible endpoint: messages in, the text of its answer out."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from puna.chat import Message

_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # what another try may mend
_OF_THE_REQUEST = (400, 413, 422)  # what only this request has: it is too long, say
_LARGEST = 16 << 20  # bytes of a reply
_LONGEST_PAUSE = 60.0  # seconds


class RefusedRequestError(ValueError):
    """The endpoint works, but does not take this request."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is asked: `url` up to and with `/v1`, its name there, and how.

    A request waits `timeout` seconds for its answer and is tried `tries` times, the second time
    after `pause` seconds, then after twice as long, or as long as the server says.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    temperature: float = 0.0
    max_tokens: int = 1024
    timeout: float = 120.0
    tries: int = 5
    pause: float = 1.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"an endpoint's address begins with http:// or https://: {self.url}")
        if self.tries < 1 or self.timeout <= 0:
            raise ValueError("an endpoint is tried once or more, and waited for")

    def answer(self, messages: Sequence[Message]) -> str:
        """The answer's text; "" where the model gives none.

        RefusedRequestError where this request cannot be answered; ValueError where none can: the
        key is refused, the model is unknown, nobody answers, or not as OpenAI's API does.
        """
        body = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        pause = self.pause
        for attempt in range(self.tries):
            try:
                return _text(self._post(body), self.url)
            except urllib.error.HTTPError as error:
                failure, wait = f"{error.code}: {_reason(error)}", _retry_after(error)
                if error.code in _OF_THE_REQUEST:
                    raise RefusedRequestError(f"the judge refuses: {failure}") from None
                if error.code not in _PASSING:
                    raise ValueError(f"{self.url} does not judge: {failure}") from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                failure, wait = str(reason), None
            if attempt + 1 < self.tries:
                time.sleep(min(pause if wait is None else wait, _LONGEST_PAUSE))
                pause *= 2
        tries = "one try" if self.tries == 1 else f"{self.tries} tries"
        raise ValueError(f"{self.url} did not answer in {tries}: {failure}")

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        # Elsewhere the key has no business, so nobody is followed there.
        opener = urllib.request.build_opener(_NoRedirects)
        with contextlib.closing(opener.open(request, timeout=self.timeout)) as reply:
            read = reply.read(_LARGEST + 1)
        if len(read) > _LARGEST:
            raise ValueError(f"{self.url} gave an answer of more than {_LARGEST >> 20} MiB")
        assert isinstance(read, bytes)
        return read


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _text(reply: bytes, url: str) -> str:
    try:
        content = json.loads(reply)["choices"][0]["message"].get("content")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{url} does not answer as OpenAI's API does; is it the address up to /v1?"
        ) from None
    return content if isinstance(content, str) else ""


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says of it, in a line."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        text = error.read(1 << 16).decode(errors="replace")
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
            text = str(json.loads(text)["error"]["message"])
        if text := " ".join(text.split()):
            return text[:200]
    return str(error.reason)


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None  # a date, or nothing
