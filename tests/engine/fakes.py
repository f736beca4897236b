"""A runner whose results depend on every token that its pages hold for a sequence, and no more."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from puna.engine.batch import Batch, Output
from puna.engine.draws import answered
from puna.formats.adapters import Pair
from puna.formats.checkpoint import LazyTensor
from tests.samples import small_config


class HashRunner:
    """Keeps tokens in pages; what a row gives are random numbers seeded by all up to it."""

    def __init__(self, num_pages: int, page_size: int, *, context: int = 64, vocab: int = 420):
        self.config = small_config(context_length=context, vocab_size=vocab)
        self.num_pages, self.page_size = num_pages, page_size
        self._pages = np.full((num_pages, page_size), -1, np.int32)
        self.num_rows: list[int] = []  # of each step
        self.num_copies = 0
        self._marks = {-1: 0}  # what an adapter makes of a row, by slot
        self._version = 0

    def step(self, batch: Batch) -> Output:
        return answered(batch, self.logits(batch), self.hidden(batch))

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        self.num_rows.append(len(batch.tokens))
        self.num_copies += len(batch.copies)
        for source, target in batch.copies:
            self._pages[target] = self._pages[source]
        pages = batch.tables[batch.sequences, batch.positions // self.page_size]
        slots = batch.positions % self.page_size
        written = list(zip(pages.tolist(), slots.tolist(), strict=True))
        assert len(set(written)) == len(written), "two rows go to one place"
        adapters = [-1] * len(batch.tables) if batch.adapters is None else batch.adapters.tolist()
        marks = np.array([self._marks[slot] for slot in adapters], np.int32) + self._version
        self._pages[pages, slots] = batch.tokens + marks[batch.sequences]
        logits = np.empty((len(batch.outputs), self.config.vocab_size), np.float32)
        for row, output in zip(logits, batch.outputs, strict=True):
            row[:] = logits_after(self._tokens(batch, output), len(row))
        return logits

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        states = np.empty((len(batch.hidden), self.config.dim), np.float32)
        for state, row in zip(states, batch.hidden, strict=True):
            state[:] = logits_after(self._tokens(batch, row), len(state))
        return states

    def _tokens(self, batch: Batch, row: int) -> NDArray[np.int32]:
        table = batch.tables[batch.sequences[row]]
        return self._pages[table].reshape(-1)[: batch.positions[row] + 1]

    def load_adapter(self, slot: int, pairs: Mapping[str, Pair]) -> None:
        assert slot not in self._marks
        self._marks[slot] = pairs["mark"][0].item()

    def unload_adapter(self, slot: int) -> None:
        del self._marks[slot]

    def update(self, weights: Mapping[str, LazyTensor]) -> None:
        self._version = int(weights["norm.weight"].read_float32()[0])


def mark(number: int) -> dict[str, Pair]:
    """An adapter that shifts every token that a `HashRunner` is given."""
    return {"mark": (np.array(number * SHIFT, np.int32), np.zeros(0, np.float32))}


SHIFT = 1000  # beyond every vocabulary


def logits_after(tokens: NDArray[np.int32], vocab: int) -> NDArray[np.float32]:
    digest = hashlib.blake2b(np.asarray(tokens, np.int32).tobytes(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    return generator.normal(0, 3, vocab).astype(np.float32)
