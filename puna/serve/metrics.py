"""What Prometheus reads at `/metrics`: requests, tokens, times, and how the engines stand."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from puna.engine.statistics import Statistics
from puna.serve.asgi import App, Message, Receive, Scope, Send
from puna.serve.errors import DISCONNECTED, ERROR_TYPES, error_type
from puna.serve.facts import Facts, facts_of

NONE = "none"  # the label of what a request has not
OTHER = "other"  # of what is not known: labels never come from a client's text

# Seconds, from a token of a small model to a long answer of a large one.
BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1, 2.5, 5, 10, 30, 60, 120, 300,
)  # fmt: skip

# Metric -> its help, the field of Statistics. Gauges are `num_...`, the others only grow.
ENGINE_GAUGES = {
    "puna_engine_running_sequences": ("Sequences in the current batch.", "num_running"),
    "puna_engine_waiting_sequences": ("Sequences that wait for pages.", "num_waiting"),
    "puna_engine_kv_pages": ("Pages for keys and values, of 16 positions.", "num_pages"),
    "puna_engine_kv_pages_used": ("Pages that sequences hold.", "num_pages_used"),
}
ENGINE_COUNTERS = {
    "puna_engine_prefix_queried_tokens": (
        "Prompt tokens that were looked for among kept pages.",
        "prompt_tokens",
    ),
    "puna_engine_prefix_hit_tokens": ("Prompt tokens that were found there.", "cached_tokens"),
    "puna_engine_preemptions": ("Sequences that gave back their pages.", "preemptions"),
    "puna_engine_proposed_tokens": ("Tokens guessed ahead.", "proposed_tokens"),
    "puna_engine_accepted_tokens": ("Guessed tokens that held.", "accepted_tokens"),
}


class EngineCollector(Collector):
    """How each engine stood when it was last asked, by the name of its model."""

    def __init__(self) -> None:
        self.engines: Mapping[str, Statistics] = {}

    def collect(self) -> Iterator[Metric]:
        engines = self.engines
        for name, (text, field) in ENGINE_GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for model, statistics in engines.items():
                gauge.add_metric([model], getattr(statistics, field))
            yield gauge
        for name, (text, field) in ENGINE_COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["model"])
            for model, statistics in engines.items():
                counter.add_metric([model], getattr(statistics, field))
            yield counter


class Metrics:
    """One app's metrics, in a registry of its own."""

    def __init__(
        self,
        models: Callable[[], Collection[str]],
        routes: Callable[[], Collection[str]],
        key_names: Collection[str] = (),
        statistics: Callable[[], Awaitable[Mapping[str, Statistics]]] | None = None,
    ) -> None:
        """`models`, `routes`: the names and path patterns that may be labels now; `statistics`: of
        each engine, by the name of its model."""
        self.models = models
        self.routes = routes
        self.key_names = frozenset(key_names)
        self.registry = registry = CollectorRegistry()
        self.statistics = statistics
        self._engines = EngineCollector()
        registry.register(self._engines)
        self.requests = Counter(
            "puna_requests", "Answered requests.", ["route", "model", "status", "key"],
            registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "puna_requests_in_flight", "Requests that are being answered.", registry=registry
        )
        self.errors = Counter(
            "puna_errors", "Requests that failed, before or within their answer, by type.",
            ["type"], registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "puna_request_duration_seconds", "From a request's headers to its answer's end.",
            ["route", "model"], buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "puna_time_to_first_token_seconds", "From a request's headers to its first token.",
            ["model"], buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "puna_inter_token_seconds", "From one token of an answer to its next.",
            ["model"], buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "puna_prompt_tokens", "Tokens of prompts.", ["model", "key"], registry=registry
        )
        self.generated_tokens = Counter(
            "puna_generated_tokens", "Tokens that were generated.", ["model", "key"],
            registry=registry,
        )  # fmt: skip

    def record(self, facts: Facts, route: str | None, status: int, seconds: float) -> None:
        """Counts a request that is over."""
        model = _label(facts.model, self.models())
        path = _label(route, self.routes())
        key = _label(facts.key_name, self.key_names)
        self.requests.labels(path, model, str(status), key).inc()
        self.duration.labels(path, model).observe(seconds)
        error = facts.error or error_type(status)
        if error is not None:
            self.errors.labels(_label(error, ERROR_TYPES)).inc()
        if facts.prompt_tokens:
            self.prompt_tokens.labels(model, key).inc(facts.prompt_tokens)
        if facts.completion_tokens:
            self.generated_tokens.labels(model, key).inc(facts.completion_tokens)
        if facts.first_token_at is not None:
            self.first_token.labels(model).observe(facts.first_token_at - facts.started_at)
        between = self.between_tokens.labels(model)
        for gap in facts.token_gaps:
            between.observe(gap)

    async def endpoint(self, request: Request) -> Response:
        """The route `/metrics`, in the form that the scraper accepts."""
        if self.statistics is not None:
            self._engines.engines = await self.statistics()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.registry), headers={"content-type": content_type})


def _label(value: str | None, known: Collection[str]) -> str:
    if value is None:
        return NONE
    return value if value in known else OTHER


def route_of(scope: Scope) -> str | None:
    """The pattern that the router matched, such as `/v1/models/{model}`."""
    return getattr(scope.get("route"), "path", None)


class MeasureRequests:
    """ASGI: records each request in the metrics when its answer is over."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        facts = facts_of(scope)
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        unanswered = 500  # what uvicorn answers for an app that raises
        with self.metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, watched_send)
                unanswered = DISCONNECTED
            finally:
                status = status or unanswered
                seconds = time.perf_counter() - facts.started_at
                self.metrics.record(facts, route_of(scope), status, seconds)
        return None
