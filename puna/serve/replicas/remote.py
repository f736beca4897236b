"""`RemoteLLM`: as the API sees it an engine; the work is done by whichever replica lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from puna.config import ModelConfig
from puna.engine.async_llm import EngineStoppedError
from puna.engine.output import Delta, Embedding, RequestOutput
from puna.engine.params import SamplingParams
from puna.engine.prompts import Prompt, encode
from puna.engine.sampling import fresh_seed
from puna.engine.statistics import Statistics
from puna.serve.replicas.delivered import Delivered, total
from puna.serve.replicas.worker import Job, Report
from puna.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)

TRIES = 4  # replicas that may die under one request
START_SECONDS = 60.0  # in which a replica must take a request, dead ones being started again
REPORT_SECONDS = 2.0


class RemoteLLM:
    """A model's replicas, asked through a handle of Ray Serve's.

    A request whose replica dies is asked of another with the same seed: each token is a function
    of seed and place, so the text is the same, and what was passed on already is left out.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, handle: Any, room: int) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._handle, self._room = handle, room
        self._closed = False
        self._reports: dict[int, Statistics] = {}  # by process, the last of each

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self._config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    def room(self, num_tokens: int) -> int:
        """How many tokens can follow a prompt of so many; 0 or less for one that cannot run."""
        return self._room - num_tokens

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> RequestOutput:
        """What follows a prompt."""
        output: RequestOutput = await self._whole("generate", self._job(prompt, params, adapter))
        return output

    async def embed(self, prompt: Prompt, *, adapter: str | None = None) -> Embedding:
        """The mean of a prompt's hidden states."""
        embedding: Embedding = await self._whole("embed", self._job(prompt, None, adapter))
        return embedding

    async def parts(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> AsyncGenerator[Sequence[Delta], None]:
        """What follows a prompt, as it comes. Leaving the loop early ends the request."""
        delivered = Delivered()
        tries = self._tries("stream", self._job(prompt, params, adapter), delivered.again)
        async with aclosing(tries) as parts:
            async for deltas in parts:
                if new := [rest for delta in deltas if (rest := delivered.rest(delta))]:
                    yield new

    async def statistics(self) -> Statistics:
        """How all replicas stand together; of those that died, what they had done."""
        reports = await self.reports()
        self._reports |= {report.process: report.statistics for report in reports}
        return total([r.statistics for r in reports], self._reports.values())

    async def reports(self) -> list[Report]:
        """How each replica stands, of those that answer."""
        try:
            answers = await self._handle.broadcast("report").results_async(
                timeout_s=REPORT_SECONDS, return_exceptions=True
            )
        except (RayServeException, TimeoutError):  # none lives, or none answers
            return []
        return [answer for answer in answers if isinstance(answer, Report)]

    async def close(self) -> None:
        """Takes no more requests; the replicas end with what they run on."""
        self._closed = True

    def _job(self, prompt: Prompt, params: SamplingParams | None, adapter: str | None) -> Job:
        params = params or SamplingParams()
        if params.seed is None:
            params = replace(params, seed=fresh_seed())
        return Job(encode(self._tokenizer, prompt), params, adapter)

    async def _whole(self, method: str, job: Job) -> Any:
        async with aclosing(self._tries(method, job)) as parts:
            async for (result,) in parts:
                return result
        raise EngineStoppedError("the replica gave no answer")

    async def _tries(
        self, method: str, job: Job, again: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[Any, None]:
        """What a replica answers, some at a time; where it dies, `again` is called and another's
        answer follows."""
        for _ in range(TRIES):
            if self._closed:
                raise EngineStoppedError("the engine was closed")
            again()
            try:
                async with aclosing(self._answer(method, job)) as parts:
                    async for items in parts:
                        yield items
                return
            except RayTaskError as error:  # what a replica raised, not its end
                if not isinstance(error.cause, RayError):
                    raise error.cause from error  # which says where
            except (RayError, RayServeException) as error:
                _LOG.warning("a replica died (%s); another one is asked", type(error).__name__)
        raise EngineStoppedError(f"{TRIES} replicas died under this request")

    async def _answer(self, method: str, job: Job) -> AsyncGenerator[Any, None]:
        """What one replica answers."""
        call = getattr(self._handle.options(stream=True), method)
        response = call.remote(job)
        try:
            await asyncio.wait_for(anext(response), START_SECONDS)
            async for items in response:
                yield items
        except TimeoutError:
            raise EngineStoppedError(
                f"no replica took the request within {START_SECONDS:g} s"
            ) from None
        finally:
            response.cancel()
