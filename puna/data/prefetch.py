"""Batches made ahead of their step, in a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetched(Generic[T]):
    """`make(step)`, and while its result is used, those of the next `depth` steps.

    It gives what `make` gives, in any order of steps, and raises what `make` raises, at its step.
    """

    def __init__(self, make: Callable[[int], T], depth: int = 2) -> None:
        self._make, self._depth = make, depth
        self._ahead: dict[int, Future[T]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def __call__(self, step: int) -> T:
        wanted = range(step, step + self._depth + 1)
        for other in [other for other in self._ahead if other not in wanted]:
            self._ahead.pop(other).cancel()
        for number in wanted:
            if number not in self._ahead:
                self._ahead[number] = self._thread.submit(self._make, number)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        """Ends the thread; what it had begun is dropped."""
        self._thread.shutdown(cancel_futures=True)
