"""`AsyncLLM`: the same model for asyncio. One thread runs the engine for all that wait."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

from puna.config import ModelConfig
from puna.engine.llm import LLM, AdapterSource
from puna.engine.output import Delta, Embedding, RequestOutput
from puna.engine.params import SamplingParams
from puna.engine.prompts import Dialog, Prompt, encode
from puna.engine.request import Request
from puna.engine.statistics import Statistics
from puna.formats.checkpoint import LazyTensor
from puna.tokenizer import Tokenizer

# Seconds: a stream that has begun is woken no more often. What comes faster comes together, which
# leaves the processor to the model; a screen shows it no later.
STREAM_INTERVAL = 0.01


class EngineStoppedError(ValueError):
    """The engine was closed, or could not run, while somebody waited: not the request's fault."""


@dataclass(slots=True)
class _Listener:
    """Who waits for a request: for whatever is new, or for its end alone."""

    streams: bool
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    told_at: float = float("-inf")  # of time.monotonic


class AsyncLLM:
    """`LLM` for asyncio; arguments as there. `async with` closes it, or `close()`."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.llm = LLM(model, **options)
        self._closed = False
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._waiting: dict[Request, _Listener] = {}
        self._untold: set[Request] = set()  # with something new that its listener does not know of
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
    ) -> AsyncGenerator[Delta, None]:
        """What follows a prompt, or the answer to a dialog, as it comes.

        Leaving the loop early, or being cancelled, ends the request.
        """
        async with contextlib.aclosing(self.parts(prompt, params, adapter=adapter)) as parts:
            async for deltas in parts:
                for delta in deltas:
                    yield delta

    async def parts(
        self,
        prompt: Prompt | Dialog,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> AsyncGenerator[Sequence[Delta], None]:
        """`stream`, but all that came since the last time together."""
        adding = self._adding(prompt, params, adapter)
        async with contextlib.aclosing(self._updates(adding, _Listener(streams=True))) as updates:
            async for request in updates:
                if deltas := [request.deltas.popleft() for _ in range(len(request.deltas))]:
                    yield deltas

    async def _finished(self, add: Callable[[], Request]) -> Request:
        async with contextlib.aclosing(self._updates(add, _Listener(streams=False))) as updates:
            return await anext(updates)

    def _adding(
        self, prompt: Prompt | Dialog, params: SamplingParams | None, adapter: str | None
    ) -> Callable[[], Request]:
        ids, params, options = self.llm.prepare(prompt, params or SamplingParams(), adapter)
        return partial(self.llm.engine.add, ids, params, **options)

    async def _updates(
        self, enter: Callable[[], Request], listener: _Listener
    ) -> AsyncGenerator[Request, None]:
        """The request that `enter` adds to the engine: when the listener is told that it has
        something new, the last time when it has ended.
        """
        self._check_open()
        held: list[Request] = []
        refused: list[Exception] = []

        def add() -> None:
            try:
                held.append(enter())
                self._waiting[held[0]] = listener
            except Exception as error:  # who asked hears of it; the engine goes on
                refused.append(error)
                _wake([listener])

        def cancel() -> None:
            for request in held:
                self._drop(request)

        self._jobs.put(add)
        try:
            while True:
                await listener.news.wait()
                listener.news.clear()
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
        self._untold.discard(request)

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
            self._tell(changed)

    def _tell(self, changed: Iterable[Request]) -> None:
        """Wakes who waits for these: at a beginning and an end at once, between them when due.

        Who is not due yet is looked at after the next step; there is one until the end.
        """
        self._untold.update(changed)
        due, now = [], time.monotonic()
        for request in list(self._untold):
            listener = self._waiting[request]
            if request.finished:
                del self._waiting[request]
            elif not listener.streams or now - listener.told_at < STREAM_INTERVAL:
                continue
            self._untold.remove(request)
            listener.told_at = now
            due.append(listener)
        _wake(due)

    def _end(self, reason: str) -> None:
        listeners = list(self._waiting.values())
        for request in list(self._waiting):
            request.error = EngineStoppedError(reason)
            self._drop(request)
        _wake(listeners)


def _wake(listeners: Sequence[_Listener]) -> None:
    """Tells them, from another thread: each loop is called once, which is what costs."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for listener in listeners:
        by_loop.setdefault(listener.loop, []).append(listener.news)
    for loop, events in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
            loop.call_soon_threadsafe(_set_all, events)


def _set_all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()
