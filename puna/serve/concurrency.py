"""Several coroutines or streams at once, none of which outlives the others' failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All of it at once. Where one fails, the others are cancelled."""
    runs = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*runs)
    finally:
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """What comes from any of them, as it comes. Where one fails, the others are closed."""
    news: asyncio.Queue[T | Exception | None] = asyncio.Queue(maxsize=64)

    async def follow(stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for new in stream:
                    await news.put(new)
            await news.put(None)
        except Exception as error:
            await news.put(error)

    runs = [asyncio.ensure_future(follow(stream)) for stream in streams]
    try:
        left = len(runs)
        while left:
            new = await news.get()
            if new is None:
                left -= 1
            elif isinstance(new, Exception):
                raise new
            else:
                yield new
    finally:
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
