"""What runs in a replica's process: an engine, and what it is asked."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import NamedTuple

from puna.engine.async_llm import AsyncLLM
from puna.engine.output import Delta, Embedding, RequestOutput
from puna.engine.params import SamplingParams
from puna.engine.prompts import EncodedPrompt
from puna.engine.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Job:
    """A request on its way to a replica."""

    prompt: EncodedPrompt
    params: SamplingParams
    adapter: str | None


class Report(NamedTuple):
    """How one replica stands."""

    process: int  # its id
    statistics: Statistics
    room: int  # tokens that a request may have in all


class Worker:
    """A replica, in the folder where the server was started, so that paths mean the same.

    Each method that runs a job first yields (): it is being worked on.
    """

    def __init__(self, make: Callable[[], AsyncLLM], folder: str) -> None:
        try:
            with suppress(FileNotFoundError):  # on another machine
                os.chdir(folder)
            self._llm = make()
        except ValueError as error:
            # Of all kinds of ValueError one: who started this reads the reason out of a log.
            raise ValueError(str(error)) from None

    async def stream(self, job: Job) -> AsyncIterator[tuple[Delta, ...]]:
        """What follows a prompt, as it comes."""
        yield ()
        parts = self._llm.parts(job.prompt, job.params, adapter=job.adapter)
        async with aclosing(parts):
            async for deltas in parts:
                yield tuple(deltas)

    async def generate(self, job: Job) -> AsyncIterator[tuple[RequestOutput, ...]]:
        """What follows a prompt, whole."""
        yield ()
        yield (await self._llm.generate(job.prompt, job.params, adapter=job.adapter),)

    async def embed(self, job: Job) -> AsyncIterator[tuple[Embedding, ...]]:
        """The mean of a prompt's hidden states."""
        yield ()
        yield (await self._llm.embed(job.prompt, adapter=job.adapter),)

    async def report(self) -> Report:
        """How it stands."""
        return Report(os.getpid(), await self._llm.statistics(), self._llm.room(0))
