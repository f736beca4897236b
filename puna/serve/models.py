"""What is served: models and adapters by name, each on an engine."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from puna.config import ModelConfig
from puna.engine.output import Delta, Embedding, RequestOutput
from puna.engine.params import SamplingParams
from puna.engine.prompts import Prompt
from puna.engine.statistics import Statistics
from puna.serve.errors import APIError
from puna.tokenizer import Tokenizer


class Backend(Protocol):
    """An engine as the API asks it: `AsyncLLM`, or one that is elsewhere."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def tokenizer(self) -> Tokenizer: ...

    def room(self, num_tokens: int) -> int:
        """How many tokens can follow a prompt of so many."""
        ...

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> RequestOutput:
        """What follows a prompt."""
        ...

    def parts(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> AsyncGenerator[Sequence[Delta], None]:
        """The same as it comes: all that came since the last time."""
        ...

    async def embed(self, prompt: Prompt, *, adapter: str | None = None) -> Embedding:
        """The mean of a prompt's hidden states."""
        ...

    async def statistics(self) -> Statistics:
        """How the engine stands."""
        ...

    async def close(self) -> None:
        """Ends it; a second time, nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """A name that clients ask for: an engine, and perhaps one of its adapters."""

    name: str
    backend: Backend
    adapter: str | None = None
    parent: str | None = None  # of an adapter, the name of the model that it is for
    created: int = field(default_factory=lambda: int(time.time()))

    def card(self) -> dict[str, object]:
        """Its entry in /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "puna",
            "parent": self.parent,
            "context_length": self.backend.config.context_length,
        }


class Models:
    """All that is served, in order, each by a name of its own; the first is the default."""

    def __init__(self, served: list[Served]) -> None:
        self._served = {each.name: each for each in served}

    def find(self, name: str | None) -> Served:
        """The one of this name. Raises APIError (404) where nothing has it."""
        if name is None:
            return next(iter(self._served.values()))
        if name not in self._served:
            raise APIError(
                404,
                f"the model {name!r} does not exist; there is {', '.join(self._served)}",
                param="model",
                code="model_not_found",
            )
        return self._served[name]

    def all(self) -> list[Served]:
        """All of them."""
        return list(self._served.values())

    def backends(self) -> Mapping[str, Backend]:
        """Each engine once, by the first name that it is served under."""
        first: dict[int, tuple[str, Backend]] = {}
        for each in self._served.values():
            first.setdefault(id(each.backend), (each.name, each.backend))
        return dict(first.values())
