"""The API's description, `/openapi.json`: FastAPI's, made true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from puna.serve.responses import Shape

_UNUSED = ("HTTPValidationError", "ValidationError")


def document(app: FastAPI, events: Sequence[type[Shape]]) -> Callable[[], dict[str, Any]]:
    """Makes it: without FastAPI's own errors, which are never sent, and with the events' shapes."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        described = describe()
        for operations in described["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        schemas = described["components"]["schemas"]
        for name in _UNUSED:
            schemas.pop(name, None)
        _, shapes = models_json_schema(
            [(event, "serialization") for event in events],
            ref_template="#/components/schemas/{model}",
        )
        for name, shape in shapes["$defs"].items():
            schemas.setdefault(name, shape)
        return described

    return openapi
