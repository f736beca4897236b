"""Who can reach the server: other machines only with keys, foreign web pages not at all."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from puna.serve.asgi import App, Receive, Scope, Send, header_values
from puna.serve.errors import APIError, send_error
from puna.serve.keys import Keys


def is_loopback(host: str) -> bool:
    """Whether a host or address (`[::1]` too) reaches this machine alone."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, keys: Keys | None) -> None:
    """Raises ValueError for an address that other machines reach, if there are no keys."""
    if not keys and not is_loopback(host):
        raise ValueError(
            f"--host {host} lets other machines in, and there is no API key: give --api-keys FILE, "
            "set PUNA_API_KEY, or bind to 127.0.0.1"
        )


def check_origins(origins: Collection[str]) -> None:
    """Raises ValueError for what no browser sends as `Origin`; `*` is any."""
    for origin in origins:
        try:
            parts = urlsplit(origin)
            given = f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.hostname else ""
        except ValueError:
            given = ""
        if origin != "*" and origin != given.lower():
            raise ValueError(
                f"--cors-origin {origin}: write it as browsers do, such as https://chat.example, "
                "in small letters and without a path, or * for any"
            )


class LocalOnly:
    """ASGI: without keys, refuses what a web page of someone else made the browser send.

    Rebinding a name of theirs to 127.0.0.1 shows in `Host`; a call across origins in `Origin`.
    """

    def __init__(
        self, app: App, hosts: Collection[str] = (), origins: Collection[str] = ()
    ) -> None:
        """`hosts`: names besides the loopback's; `origins`: what CORS allows, `*` for all."""
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)
        self.origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._is_known(_hostname(hosts[0])):
            message = "The Host header is not this server's: address it as localhost or 127.0.0.1."
            return await send_error(send, APIError(403, message, code="host_not_allowed"))
        for origin in _values(scope, b"origin"):
            if not self._may_call(origin, hosts[0]):
                message = "Pages of this origin may not call the server: see --cors-origin."
                return await send_error(send, APIError(403, message, code="origin_not_allowed"))
        return await self.app(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        return is_loopback(host) or host in self.hosts

    def _may_call(self, origin: str, host: str) -> bool:
        if "*" in self.origins or origin in self.origins:
            return True
        try:
            return urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:
            return False


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for value in header_values(scope, name)]


def _hostname(host: str) -> str:
    """`Host` without its port; "" if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
