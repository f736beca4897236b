"""The interface between the server's layers: ASGI's types, and the headers of a request.

https://asgi.readthedocs.io
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """Each value that the request gives a header, whose name is in small letters."""
    return [value.strip() for key, value in scope["headers"] if key == name]
