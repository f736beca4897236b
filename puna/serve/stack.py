"""What stands between the network and the API, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.middleware.cors import CORSMiddleware

from puna.serve.deadlines import Deadline, Stopping
from puna.serve.errors import App
from puna.serve.exposure import LocalOnly
from puna.serve.gate import Admission, Gate
from puna.serve.keys import Keys, RequireKey
from puna.serve.limits import BodyLimit

# What runs the model, and so has to wait for its turn.
WORK = ("/completions", "/chat/completions", "/embeddings")
DOCUMENTATION = ("/docs", "/openapi.json")


@dataclass(frozen=True)
class Protection:
    """Who may ask, how much, and for how long."""

    keys: Keys | None = None
    hosts: tuple[str, ...] = ()  # besides the loopback's, where there are no keys
    origins: tuple[str, ...] = ()  # of web pages that may call; "*" for all
    capacity: int = 1024  # requests at work or waiting
    max_body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    seconds: float | None = 600.0  # until an answer is whole


def protected(app: App, protection: Protection, stopping: Stopping) -> App:
    """The API behind its layers; the first one here is the last that a request comes to."""
    paths = [prefix + path for path in WORK for prefix in ("", "/v1")]
    app = Admission(app, Gate(protection.capacity), paths)
    app = BodyLimit(app, protection.max_body_bytes, protection.body_seconds)
    app = Deadline(app, stopping, protection.seconds)
    if protection.keys:
        app = RequireKey(app, protection.keys, DOCUMENTATION)
    else:
        app = LocalOnly(app, protection.hosts, protection.origins)
    if protection.origins:
        app = CORSMiddleware(
            app,
            allow_origins=protection.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    return app
