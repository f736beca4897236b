"""How fast a runner is: prompts, and decoding at several batch sizes and contexts."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.engine.batch import Batch, Runner, greedy
from puna.formats.checkpoint import Checkpoint

_STEPS = 16  # tokens of a burst of decoding
_MEMORY = 1 << 28  # bytes that are read to measure bandwidth, more than caches hold


@dataclass(frozen=True, slots=True)
class Speed:
    """The median of one job's bursts. `batch` sequences, each with `context` tokens before.

    `read` is the bytes a second at which weights, keys and values were read, `limit` those at
    which as many threads just read memory between the bursts. None for prompts, which arithmetic
    limits, and where it was not measured.
    """

    job: str
    batch: int
    context: int
    tokens_per_second: float
    read: float | None = None
    limit: float | None = None


def tokens_needed(batches: Sequence[int], contexts: Sequence[int], prompt: int) -> int:
    """Tokens whose keys and values a runner must hold for `measure`, whatever its page size."""
    return max(prompt, max(batches) * (max(contexts) + _STEPS + 64)) + 64


def measure(
    runner: Runner,
    checkpoint: Checkpoint,
    *,
    batches: Sequence[int],
    contexts: Sequence[int],
    prompt: int,
    rounds: int,
    num_threads: int | None,
    on_job: Callable[[], None] = lambda: None,
) -> Iterator[Speed]:
    """The speed of reading a prompt of so many tokens, then of each batch size and context.

    `num_threads` None measures no bandwidth beside it, for other devices than the processor.
    Raises ValueError for more tokens than the model's context.
    """
    longest, most = max(prompt, max(contexts) + _STEPS), runner.config.context_length
    if longest > most:
        raise ValueError(
            f"{longest} tokens ({_STEPS} after the context) are more than the model's {most}"
        )
    seconds = [seconds_of(runner, 1, 0, prompt, 1) for _ in range(rounds + 1)][1:]
    yield Speed("prompt", 1, 0, prompt / statistics.median(seconds))
    on_job()
    weights = _read_bytes(checkpoint)
    for context in contexts:
        for batch in batches:
            seconds, limits = [], []
            for _ in range(rounds + 1):
                if num_threads is not None:
                    limits.append(read_bandwidth(num_threads))
                seconds.append(seconds_of(runner, batch, context, 1, _STEPS) / _STEPS)
            step = statistics.median(seconds[1:])
            limit = statistics.median(limits[1:]) if limits else None
            read = weights + batch * (context + _STEPS // 2) * runner.token_bytes
            yield Speed("decode", batch, context, batch / step, read / step, limit)
            on_job()


def read_bandwidth(num_threads: int, size: int = _MEMORY) -> float:
    """Bytes a second that so many threads together read from memory."""
    with reading(num_threads, size) as seconds:
        return size / seconds()


@contextlib.contextmanager
def reading(
    num_threads: int, size: int = _MEMORY, passes: int = 1
) -> Iterator[Callable[[], float]]:
    """A function that reads `size` bytes of memory with so many threads, each its part `passes`
    times, and says how long that took. They were read once before."""
    parts = np.array_split(np.ones(size // 8, np.int64), num_threads)

    def read(part: NDArray[np.int64]) -> None:
        for _ in range(passes):
            part.max()

    with ThreadPoolExecutor(num_threads) as pool:

        def seconds() -> float:
            started = time.perf_counter()
            if num_threads == 1:
                read(parts[0])
            else:
                list(pool.map(read, parts))
            return time.perf_counter() - started

        seconds()
        yield seconds


def seconds_of(runner: Runner, batch: int, begin: int, length: int, steps: int) -> float:
    """Of `steps` steps in which each of `batch` sequences gets `length` tokens, from `begin` on.

    Pages hold what they hold: reading them takes the same time.
    """
    width = -(-(begin + length * steps) // runner.page_size)
    tables = np.arange(width * batch, dtype=np.int32).reshape(batch, width)
    tokens = np.random.default_rng(0).integers(3, runner.config.vocab_size, batch * length)
    started = time.perf_counter()
    for step in range(steps):
        first = begin + step * length
        runner.step(
            Batch(
                tokens=tokens.astype(np.int32),
                positions=np.tile(np.arange(first, first + length, dtype=np.int32), batch),
                sequences=np.repeat(np.arange(batch, dtype=np.int32), length),
                tables=tables,
                outputs=np.arange(length - 1, batch * length, length, dtype=np.int32),
                draws=(greedy(runner.config.vocab_size),) * batch,
            )
        )
    return time.perf_counter() - started


def _read_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of weights that a step reads: of an embedding that is no head, only rows."""
    tensors = checkpoint.tensors
    left_out = 0 if checkpoint.config.tied else tensors["tok_embeddings.weight"].num_bytes
    return checkpoint.num_bytes - left_out
