"""The application: all routes, and how errors look."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from puna import __version__
from puna.serve import chat, completions, embeddings, tokens
from puna.serve.deadlines import Stopping
from puna.serve.document import document
from puna.serve.errors import APIError, as_api_error
from puna.serve.models import Models
from puna.serve.responses import ChatEvent, ModelCard, ModelList, Status, answers
from puna.serve.service import Limits, Service, service_of

_LOG = logging.getLogger(__name__)

catalog = APIRouter(tags=["Models"])
state = APIRouter(tags=["State"])

VERSIONED = (catalog, completions.router, chat.router, embeddings.router)  # under /v1
UNVERSIONED = (tokens.router, state)

_TYPES = ("str", "int")
MAX_SHOWN = 256  # characters of what a client asked for


def create_app(
    models: Models,
    limits: Limits | None = None,
    stopping: Stopping | None = None,
    routes: Sequence[BaseRoute] = (),
    has_keys: bool = False,
) -> FastAPI:
    """The API over these models, whose engines end with it, and other routes beside it.

    `has_keys`: its description says so; the layers around it ask for them.
    """
    service = Service(models, limits or Limits(), stopping or Stopping())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()
        for backend in models.backends().values():
            await backend.close()

    app = FastAPI(
        title="Puna",
        version=__version__,
        summary="Llamas behind the API that OpenAI's clients speak.",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if has_keys else [],
        lifespan=lifespan,
    )
    app.state.service = service
    for router in VERSIONED:
        app.include_router(router, prefix="/v1")
        # Clients whose base URL has no /v1.
        app.include_router(router, include_in_schema=False)
    for router in UNVERSIONED:
        app.include_router(router)
    app.router.routes.extend(routes)
    app.openapi = document(app, [ChatEvent])  # type: ignore[method-assign]
    for kind in (APIError, RequestValidationError, HTTPException, ValueError, Exception):
        app.add_exception_handler(kind, _on_error)
    return app


@catalog.get("/models", responses=answers(ModelList))
async def list_models(request: Request) -> dict[str, object]:
    """What is served: models, and adapters under their own names."""
    cards = [served.card() for served in service_of(request).models.all()]
    return {"object": "list", "data": cards}


@catalog.get("/models/{model:path}", responses=answers(ModelCard))
async def get_model(model: str, request: Request) -> dict[str, object]:
    """One of them."""
    return service_of(request).models.find(model).card()


@state.get("/health", responses={200: {"model": Status}})
async def health() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@state.get("/ready", responses={code: {"model": Status} for code in (200, 503)})
async def ready(request: Request) -> Response:
    """Whether new requests are taken: no more once the server is stopping."""
    stops = service_of(request).stopping.begun
    return JSONResponse({"status": "stopping" if stops else "ready"}, 503 if stops else 200)


async def _on_error(request: Request, error: Exception) -> Response:
    problem = _problem(request, error)
    if problem.status >= 500:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    # ASCII, for what a client sent may be no valid Unicode.
    text = json.dumps(problem.body())
    return Response(text, problem.status, problem.headers, "application/json")


def _problem(request: Request, error: Exception) -> APIError:
    if isinstance(error, RequestValidationError):
        return _invalid(request, error)
    if isinstance(error, HTTPException):
        path = request.url.path[:MAX_SHOWN]
        told = {
            404: f"there is no {path}; /docs says what there is",
            405: f"{path} does not take {request.method[:MAX_SHOWN]}; /docs says what it takes",
        }
        detail = told.get(error.status_code, str(error.detail))
        return APIError(error.status_code, detail, headers=error.headers)
    return as_api_error(error)


def _invalid(request: Request, error: RequestValidationError) -> APIError:
    """What is wrong first with a request's body, and where."""
    # Of a choice of types each has its error; the one deepest in the body knows most. A field that
    # is not known tells more than that another one, which it may be misspelt for, is missing.
    first = max(
        error.errors(), key=lambda each: (len(each["loc"]), each["type"] == "extra_forbidden")
    )
    is_json = "json" in request.headers.get("content-type", "")
    if first["loc"] == ("body",) and not is_json and first["input"]:
        return APIError(400, "send the body with the header `Content-Type: application/json`")
    if first["type"] == "json_invalid":
        return APIError(
            400, f"the body is no JSON ({first['ctx']['error']}, at {first['loc'][-1]})"
        )
    where = _path(first["loc"][1:])
    if first["type"] == "extra_forbidden":
        return APIError(400, f"unknown field {where}", param=where, code="unknown_parameter")
    return APIError(400, f"{where or 'the body'}: {first['msg']}", param=where or None)


def _path(loc: Sequence[str | int]) -> str:
    """`messages[0].content`, without the names of types that pydantic puts between."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in _TYPES:
            path += f".{part}" if path else part
    return path
