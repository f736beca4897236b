"""The whole server as one application: the API, and what stands between it and the network."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from puna.engine.statistics import Statistics
from puna.serve.access_log import AccessLog
from puna.serve.app import UNVERSIONED, VERSIONED, create_app
from puna.serve.asgi import App
from puna.serve.deadlines import Deadline, Stopping
from puna.serve.exposure import LocalOnly
from puna.serve.gate import Admission, Gate
from puna.serve.keys import Keys, RequireKey
from puna.serve.limits import BodyLimit
from puna.serve.metrics import MeasureRequests, Metrics
from puna.serve.models import Models
from puna.serve.pages import CHAT, DOCS, page_routes
from puna.serve.service import Limits

# What runs the model, and so has to wait for its turn.
WORK = ("/completions", "/chat/completions", "/embeddings")


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


@dataclass(frozen=True)
class Logging:
    """Where a line for each request goes, None: nowhere; with what people wrote, or without."""

    logger: logging.Logger | None = None
    prompts: bool = False


def build(
    models: Models,
    stopping: Stopping,
    *,
    protection: Protection | None = None,
    limits: Limits | None = None,
    log: Logging | None = None,
    chat: bool = True,
) -> App:
    """The API behind its layers, with metrics and pages; `chat`: the one in the browser."""
    protection, log = protection or Protection(), log or Logging()
    keys = protection.keys

    async def statistics() -> Mapping[str, Statistics]:
        return {name: await each.statistics() for name, each in models.backends().items()}

    names = frozenset(each.name for each in models.all())
    metrics = Metrics(lambda: names, lambda: patterns, keys.names if keys else (), statistics)
    pages = CHAT if chat else DOCS
    routes = [Route("/metrics", metrics.endpoint), *page_routes(pages)]
    api = create_app(models, limits, stopping, routes, has_keys=bool(keys))
    known = [*routes, *(route for router in VERSIONED + UNVERSIONED for route in router.routes)]
    patterns = frozenset(getattr(route, "path", "") for route in known)
    paths = [prefix + path for path in WORK for prefix in ("", "/v1")]
    app = MeasureRequests(protected(api, protection, stopping, paths), metrics)
    if log.logger is None:
        return app
    redact = keys.redact if keys else str
    return AccessLog(app, log.logger, log_prompts=log.prompts, redact=redact)


def protected(app: App, protection: Protection, stopping: Stopping, paths: Sequence[str]) -> App:
    """The app behind the layers that decide who may ask, and how much; `paths` are what has to
    wait for its turn. The last layer here is the first that a request comes to."""
    app = Admission(app, Gate(protection.capacity), paths)
    app = BodyLimit(app, protection.max_body_bytes, protection.body_seconds)
    app = Deadline(app, stopping, protection.seconds)
    if protection.keys:
        app = RequireKey(app, protection.keys)
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
