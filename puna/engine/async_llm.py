"""`AsyncLLM`: the same model for asyncio. One thread runs the engine for all that wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

from puna.config import ModelConfig
from puna.engine.engine import Request
from puna.engine.llm import LLM, AdapterSource
from puna.engine.output import Delta, Embedding, RequestOutput
from puna.engine.params import SamplingParams
from puna.engine.prompts import Dialog, Prompt, encode
from puna.engine.statistics import Statistics
from puna.formats.checkpoint import LazyTensor
from puna.tokenizer import Tokenizer


class EngineStoppedError(ValueError):
    """The engine was closed, or could not run, while somebody waited: not the request's fault."""


class AsyncLLM:
    """`LLM` for asyncio; arguments as there. `async with` closes it, or `close()`."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.llm = LLM(model, **options)
        self._closed = False
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._waiting: dict[Request, Callable[[], None]] = {}
        self._thread = Thread(target=self._work, name="puna-engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all requests and the thread."""
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.llm.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.llm.tokenizer

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters that are loaded."""
        return self.llm.adapters

    def room(self, num_tokens: int) -> int:
        """How many tokens can follow a prompt of so many; 0 or less for one that cannot run."""
        return self.llm.engine.room(num_tokens)

    async def statistics(self) -> Statistics:
        """How the engine stands."""
        return self.llm.engine.statistics()

    async def load_adapter(
        self, name: str, adapter: AdapterSource | Sequence[AdapterSource]
    ) -> None:
        """Loads an adapter between two steps of what runs."""
        pairs = await asyncio.to_thread(self.llm.read_adapter, adapter)
        await self._between_steps(lambda: self.llm.engine.load_adapter(name, pairs))

    async def unload_adapter(self, name: str) -> None:
        """Forgets an adapter."""
        await self._between_steps(lambda: self.llm.engine.unload_adapter(name))

    async def update(self, weights: Mapping[str, LazyTensor]) -> None:
        """Answers with these weights, all or some, from the next step on."""
        await self._between_steps(lambda: self.llm.engine.update(weights))

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> RequestOutput:
        """What follows a prompt; many at once run together."""
        return (await self._finished(self._adding(prompt, params, adapter))).result()

    async def chat(
        self, messages: Dialog, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> RequestOutput:
        """The assistant's answer to a dialog."""
        return (await self._finished(self._adding(messages, params, adapter))).result()

    async def embed(self, prompt: Prompt, *, adapter: str | None = None) -> Embedding:
        """A prompt as one vector; many at once run together."""
        ids = encode(self.tokenizer, prompt).ids
        add = partial(self.llm.engine.add_embedding, ids, adapter=adapter)
        return (await self._finished(add)).embedding()

    async def stream(
        self,
        prompt: Prompt | Dialog,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> AsyncIterator[Delta]:
        """What follows a prompt, or the answer to a dialog, as it comes.

        Leaving the loop early, or being cancelled, ends the request.
        """
        async for request in self._updates(self._adding(prompt, params, adapter)):
            while request.deltas:
                yield request.deltas.popleft()

    async def _finished(self, add: Callable[[], Request]) -> Request:
        async for request in self._updates(add):
            request.deltas.clear()
        return request

    def _adding(
        self, prompt: Prompt | Dialog, params: SamplingParams | None, adapter: str | None
    ) -> Callable[[], Request]:
        ids, params, options = self.llm.prepare(prompt, params or SamplingParams(), adapter)
        return partial(self.llm.engine.add, ids, params, **options)

    async def _updates(self, enter: Callable[[], Request]) -> AsyncIterator[Request]:
        """The request that `enter` adds to the engine: each time that it has something new, the
        last time when it has ended.
        """
        self._check_open()
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        held: list[Request] = []
        refused: list[Exception] = []

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
                loop.call_soon_threadsafe(news.set)

        def add() -> None:
            try:
                held.append(enter())
                self._waiting[held[0]] = tell
            except Exception as error:  # who asked hears of it; the engine goes on
                refused.append(error)
                tell()

        def cancel() -> None:
            for request in held:
                self._drop(request)

        self._jobs.put(add)
        try:
            while True:
                await news.wait()
                news.clear()
                if refused:
                    raise refused[0]
                finished = held[0].finished
                yield held[0]
                if finished:
                    break
            held[0].result()
        finally:
            self._jobs.put(cancel)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineStoppedError("the engine was closed")

    async def _between_steps(self, function: Callable[[], None]) -> None:
        """Calls `function` in the engine's thread; raises what it raises."""
        self._check_open()
        done: Future[None] = Future()

        def job() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    function()
                except Exception as error:
                    done.set_exception(error)
                else:
                    done.set_result(None)

        self._jobs.put(job)
        await asyncio.wrap_future(done)

    def _drop(self, request: Request) -> None:
        self.llm.engine.cancel(request)
        self._waiting.pop(request, None)

    def _work(self) -> None:
        engine = self.llm.engine
        while True:
            while not (engine.has_work and self._jobs.empty()):
                job = self._jobs.get()
                if job is None:
                    self._end("the engine was closed")
                    return
                job()
            try:
                changed = engine.step()
            except Exception as error:
                # Whatever it was, those that wait must hear of it, and others may go on to ask.
                self._end(f"the engine could not run: {error}")
                continue
            for request in changed:
                tell = self._waiting.pop(request) if request.finished else self._waiting[request]
                tell()

    def _end(self, reason: str) -> None:
        for request, tell in list(self._waiting.items()):
            self._drop(request)
            request.error = EngineStoppedError(reason)
            tell()
