"""How many requests are taken in at a time; more are told when to come again."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from puna.serve.asgi import App, Receive, Scope, Send
from puna.serve.errors import APIError, send_error

MAX_RETRY_SECONDS = 60
SMOOTHING = 0.1  # the newest duration's share of the average


class BusyError(APIError):
    """Refused, not queued: 429 with `Retry-After`."""

    def __init__(self, capacity: int, retry_seconds: int) -> None:
        super().__init__(
            429,
            f"The server has {capacity} requests at work or waiting and takes no more: "
            f"try again in {retry_seconds} s.",
            kind="requests",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(retry_seconds)},
        )


class Gate:
    """Admits `capacity` requests at a time, those at work and those that the engine queues."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"the queue must take at least 1 request, not {capacity}")
        self.capacity = capacity
        self.num_inside = 0
        self._turned_away = 0  # who will come again, before whoever is refused next
        self._mean_seconds = 1.0  # a request lasts, lately

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Counts a request in and out again. Raises `BusyError` when all places are taken."""
        if self.num_inside >= self.capacity:
            self._turned_away += 1
            raise BusyError(self.capacity, self.retry_seconds())
        self._turned_away = max(0, self._turned_away - 1)
        self.num_inside += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self.num_inside -= 1
            self._mean_seconds += SMOOTHING * (time.perf_counter() - started - self._mean_seconds)

    def retry_seconds(self) -> int:
        """When a place should be free: one falls free every mean / capacity seconds, and as many
        are needed as were turned away. Whole seconds, 1 to 60."""
        wait = self._turned_away * self._mean_seconds / self.capacity
        return min(max(1, math.ceil(wait)), MAX_RETRY_SECONDS)


class Admission:
    """ASGI: passes requests for `paths` through a gate, for as long as their answers last."""

    def __init__(self, app: App, gate: Gate, paths: Collection[str]) -> None:
        self.app = app
        self.gate = gate
        self.paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self.paths:
            return await self.app(scope, receive, send)
        try:
            async with self.gate.enter():
                await self.app(scope, receive, send)
        except BusyError as error:
            await send_error(send, error)
        return None
