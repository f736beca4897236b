"""Metrics: counted once, labelled only with what is known, of one app only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from puna.engine.statistics import Statistics
from puna.serve.access_log import AccessLog
from puna.serve.asgi import Receive, Scope, Send
from puna.serve.facts import facts_of
from puna.serve.metrics import ERROR_TYPES, MeasureRequests, Metrics, error_type
from tests.serve.apps import make_app, memory_log, request

STATISTICS = Statistics(
    num_running=1, num_waiting=2, num_pages=30, num_pages_used=4, prompt_tokens=50,
    cached_tokens=6, preemptions=7, proposed_tokens=80, accepted_tokens=9,
)  # fmt: skip


def make_metrics(**options: Any) -> Metrics:
    return Metrics(lambda: ["tiny"], lambda: ["/echo", "/stream", "/models/{name}"], **options)


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, label values ...) -> value, as a scraper reads it over the route."""
    scope = {"type": "http", "headers": [], "method": "GET", "path": "/metrics"}
    response = asyncio.run(metrics.endpoint(Request(scope)))
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(bytes(response.body).decode())
        for sample in family.samples
    }


def filled(model: str | None, key: str | None) -> Any:
    """The small app's stream, whose handler says which model and key it was."""
    inner = make_app(steps=4, pause=0.001)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        facts = facts_of(scope)
        facts.model, facts.key_name, facts.prompt_tokens = model, key, 11
        scope["route"] = Route(scope["path"], inner)
        await inner(scope, receive, send)

    return app


def test_a_request_is_counted() -> None:
    metrics = make_metrics(key_names=["alice"])
    app = MeasureRequests(filled("tiny", "alice"), metrics)
    for _ in range(3):
        asyncio.run(request(app, "/stream"))
    found = samples(metrics)
    assert found["puna_requests_total", "alice", "tiny", "/stream", "200"] == 3
    assert found["puna_prompt_tokens_total", "alice", "tiny"] == 33
    assert found["puna_generated_tokens_total", "alice", "tiny"] == 12
    assert found["puna_time_to_first_token_seconds_count", "tiny"] == 3
    assert found["puna_inter_token_seconds_count", "tiny"] == 9
    assert found["puna_inter_token_seconds_sum", "tiny"] >= 9 * 0.001
    assert found["puna_request_duration_seconds_count", "tiny", "/stream"] == 3
    assert found["puna_requests_in_flight",] == 0
    assert not [name for name in found if name[0] == "puna_errors_total"]


def test_labels_are_never_a_clients_text() -> None:
    metrics = make_metrics(key_names=["alice"])
    for number in range(50):
        name = f"made-up-{number}"
        asyncio.run(request(MeasureRequests(filled(name, name), metrics), f"/{name}"))
    found = samples(metrics)
    assert found["puna_requests_total", "other", "other", "other", "404"] == 50
    assert not [name for name in found if any("made-up" in part for part in name)]


@pytest.mark.parametrize("path", ["/models/tiny", "/models/other"])
def test_the_route_is_the_routers_pattern(path: str) -> None:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("here")

    metrics = make_metrics()
    app = MeasureRequests(Starlette(routes=[Route("/models/{name}", page)]), metrics)
    asyncio.run(request(app, path, method="GET"))
    assert samples(metrics)["puna_requests_total", "none", "none", "/models/{name}", "200"] == 1


@pytest.mark.parametrize(
    ("path", "status", "kind"), [("/fail", "500", "internal"), ("/nowhere", "404", "not_found")]
)
def test_errors_are_counted_by_type(path: str, status: str, kind: str) -> None:
    metrics = make_metrics()
    app = MeasureRequests(make_app(), metrics)
    if path == "/fail":
        with pytest.raises(RuntimeError):
            asyncio.run(request(app, path))
    else:
        asyncio.run(request(app, path))
    found = samples(metrics)
    assert found["puna_errors_total", kind] == 1
    assert found["puna_requests_total", "none", "none", "none", status] == 1
    assert found["puna_requests_in_flight",] == 0


def test_errors_within_an_answer_and_clients_that_left() -> None:
    metrics = make_metrics()
    logger, _ = memory_log()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        facts_of(scope).error = "timeout" if scope["path"] == "/echo" else "what nobody knows"
        await make_app()(scope, receive, send)

    async def leaves(scope: Scope, receive: Receive, send: Send) -> None:
        async def gone() -> Any:
            return {"type": "http.disconnect"}

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()

        await AccessLog(MeasureRequests(app, metrics), logger)(scope, gone, send)

    asyncio.run(request(MeasureRequests(late, metrics), "/echo"))
    asyncio.run(request(MeasureRequests(late, metrics), "/stream"))
    asyncio.run(request(leaves))
    found = samples(metrics)
    assert found["puna_errors_total", "timeout"] == 1
    assert found["puna_errors_total", "other"] == 1
    assert found["puna_errors_total", "disconnected"] == 1
    assert found["puna_requests_total", "none", "none", "none", "499"] == 1


def test_every_failure_has_a_type() -> None:
    assert {error_type(status) for status in range(400, 600)} == ERROR_TYPES
    assert [error_type(status) for status in (200, 204, 304)] == [None] * 3


def test_engines_are_asked_when_scraped() -> None:
    engines: dict[str, Statistics] = {}
    scrapes: list[int] = []

    async def statistics() -> dict[str, Statistics]:
        scrapes.append(1)
        return engines

    metrics = make_metrics(statistics=statistics)
    assert scrapes == []
    samples(metrics)
    engines["tiny"] = STATISTICS
    engines["tiny:story"] = STATISTICS._replace(num_running=5)
    found = samples(metrics)
    assert len(scrapes) == 2
    expected = {
        "running_sequences": 1, "waiting_sequences": 2, "kv_pages": 30, "kv_pages_used": 4,
        "prefix_queried_tokens_total": 50, "prefix_hit_tokens_total": 6, "preemptions_total": 7,
        "proposed_tokens_total": 80, "accepted_tokens_total": 9,
    }  # fmt: skip
    assert {name: found[f"puna_engine_{name}", "tiny"] for name in expected} == expected
    assert found["puna_engine_running_sequences", "tiny:story"] == 5


def test_apps_count_for_themselves() -> None:
    first, second = make_metrics(), make_metrics()
    asyncio.run(request(MeasureRequests(make_app(), first)))
    assert [name for name in samples(first) if name[0] == "puna_requests_total"]
    assert not [name for name in samples(second) if name[0] == "puna_requests_total"]


def families(metrics: Metrics) -> Iterator[Any]:
    yield from metrics.registry.collect()


def test_every_metric_is_named_and_explained() -> None:
    found = list(families(make_metrics()))
    assert len(found) == 17
    for family in found:
        assert family.name.startswith("puna_")
        assert family.documentation.endswith(".")


def test_the_scraper_may_ask_for_openmetrics() -> None:
    accept = [(b"accept", b"application/openmetrics-text; version=1.0.0")]
    scope = {"type": "http", "headers": accept, "method": "GET", "path": "/metrics"}
    response = asyncio.run(make_metrics().endpoint(Request(scope)))
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert bytes(response.body).endswith(b"# EOF\n")
