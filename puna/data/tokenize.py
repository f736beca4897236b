"""Texts -> shards, in one process or several."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.data.manifest import Manifest
from puna.data.shards import TOKENS_PER_SHARD, ShardWriter
from puna.data.words import WordTokenizer
from puna.tokenizer import Vocabulary

_BATCH_CHARACTERS = 1 << 20  # of text that a process gets at once

Ids = NDArray[np.unsignedinteger]


def write_shards(
    texts: Iterable[str],
    vocabulary: Vocabulary,
    folder: Path,
    *,
    source: str,
    licence: str,
    max_tokens_per_shard: int = TOKENS_PER_SHARD,
    num_processes: int = 1,
    on_document: Callable[[], None] = lambda: None,
) -> Manifest:
    """Tokenizes `texts`, the documents of one source, into new shards in `folder`.

    The files are the same for any number of processes. Raises ValueError for text that is not
    valid Unicode, and what `ShardWriter` raises; nothing is left then.
    """
    with ShardWriter(
        folder,
        vocabulary,
        source=source,
        licence=licence,
        max_tokens_per_shard=max_tokens_per_shard,
    ) as writer:
        for ids in tokenized(texts, vocabulary, num_processes=num_processes):
            writer.add(ids)
            on_document()
    return writer.manifest


def tokenized(
    texts: Iterable[str], vocabulary: Vocabulary, *, num_processes: int = 1
) -> Iterator[Ids]:
    """The ids of each text, without BOS and EOS, in their order."""
    if num_processes < 1:
        raise ValueError(f"num_processes must be positive, not {num_processes}")
    if num_processes == 1:
        yield from map(WordTokenizer(vocabulary).encode, texts)
        return
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(vocabulary)) for _ in range(num_processes)]
        busy: list[Connection] = []
        # By turns, one batch each: a worker's answer is read before it is sent anything again, so
        # that neither waits for the other with a full pipe.
        for batch, worker in zip(_batches(texts), itertools.cycle(workers), strict=False):
            if len(busy) == num_processes:
                yield from _answer(busy.pop(0))
            worker.send(batch)
            busy.append(worker)
        for worker in busy:
            yield from _answer(worker)


@contextlib.contextmanager
def _worker(vocabulary: Vocabulary) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of other threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, vocabulary), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()  # ends the worker
        process.join()


def _work(connection: Connection, vocabulary: Vocabulary) -> None:
    encode = WordTokenizer(vocabulary).encode
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            batch: list[str] = connection.recv()
            try:
                answer: list[Ids] | ValueError = [encode(text) for text in batch]
            except ValueError as error:
                answer = error
            connection.send(answer)


def _answer(worker: Connection) -> list[Ids]:
    try:
        answer: list[Ids] | ValueError = worker.recv()
    except EOFError:
        raise RuntimeError("a process that tokenizes ended; was it killed for memory?") from None
    if isinstance(answer, ValueError):
        raise answer
    return answer


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
