"""Ids of the clean documents: shards that are mapped from disk, one a task, and their manifest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from puna.data.pipeline.plan import Plan
from puna.data.pipeline.tally import Tally
from puna.tokenizer import Tokenizer
from puna.tokenizer.sentencepiece_model import read_model

TOKENIZER = "tokenizer.model"
_BATCH = 64  # documents tokenized at once


class WriteTokens(PipelineStep):
    """Tokenizes a task's documents, each between BOS and EOS, into one shard."""

    type, name = "🔢 - TOKENIZE", "tokenize"

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__()
        self.plan, self.folder = plan, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        source = self.plan.source(rank)
        tokenizer = Tokenizer(read_model((self.folder / TOKENIZER).read_bytes()))
        tally = Tally(self.name, source.name)
        for batch in _batched(data, _BATCH):
            texts = [document.text for document in batch]
            for document, ids in zip(
                batch, tokenizer.encode_batch(texts, bos=True, eos=True), strict=True
            ):
                tally.came_in(document.text)
                tally.went_out(document.text)
                tally.events["tokens"] += len(ids)
                yield document
        tally.write(self.folder / "tallies", rank)


def _batched(data: Iterator[Document], size: int) -> Iterator[list[Document]]:
    while batch := list(itertools.islice(data, size)):
        yield batch
