"""The HTTP side of comparing: three calls, the page, and what stands before them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from puna.serve.asgi import App
from puna.serve.compare.desk import Ask, Desk, Undo, Verdict
from puna.serve.deadlines import Stopping
from puna.serve.errors import APIError, as_api_error
from puna.serve.models import Models
from puna.serve.pages import COMPARE, page_routes
from puna.serve.stack import Protection, protected

_HANDLED = (APIError, HTTPException, ValueError, Exception)
_Body = TypeVar("_Body", bound=BaseModel)


def create_compare_app(
    desk: Desk, models: Models, stopping: Stopping, protection: Protection
) -> App:
    """The page at `/` and its calls, behind the layers that the API has; ends the engines."""

    async def state(request: Request) -> Response:
        return JSONResponse(desk.state())

    async def pair(request: Request) -> Response:
        return JSONResponse(await desk.ask(await _body(request, Ask)))

    async def verdict(request: Request) -> Response:
        return JSONResponse(desk.judge(await _body(request, Verdict)))

    async def undo(request: Request) -> Response:
        return JSONResponse(desk.undo(await _body(request, Undo)))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for backend in models.backends().values():
            await backend.close()

    calls: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "pair": pair,
        "verdict": verdict,
        "undo": undo,
    }
    app = Starlette(
        routes=[
            *page_routes(COMPARE),
            Route("/api/state", state),
            *(Route(f"/api/{name}", call, methods=["POST"]) for name, call in calls.items()),
        ],
        exception_handlers=dict.fromkeys(_HANDLED, _on_error),
        lifespan=lifespan,
    )
    return protected(app, protection, stopping, paths=["/api/pair"])


async def _body(request: Request, form: type[_Body]) -> _Body:
    """The body as `form`; APIError (400) that names the field, or (415) for another type, which
    a page of another origin could send without asking."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise APIError(415, "the body must be application/json", code="not_json")
    try:
        return form.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the body"
        raise APIError(400, f"{field}: {first['msg']}", param=field) from None
    except (ValueError, RecursionError):
        raise APIError(400, "the body is not JSON", code="not_json") from None


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = APIError(error.status_code, error.detail)
    found = as_api_error(error)
    body: dict[str, Any] = found.body()
    return JSONResponse(body, status_code=found.status, headers=found.headers)
