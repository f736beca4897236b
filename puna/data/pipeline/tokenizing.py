"""Ids of the clean documents: token shards, a folder of them a task, then one manifest of all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from puna.data.corpus import MIX, TOKENIZER, TOKENS
from puna.data.pipeline.plan import Plan
from puna.data.pipeline.tally import Tally
from puna.data.shards import ShardWriter, join_shards
from puna.tokenizer import Tokenizer
from puna.tokenizer.sentencepiece_model import read_model

_DOCUMENTS, _CHARACTERS = 64, 1 << 20  # tokenized at once, at most


class WriteTokens(PipelineStep):
    """Tokenizes a task's documents into shards of their own."""

    type, name = "🔢 - TOKENIZE", "tokenize"

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__()
        self.plan, self.folder = plan, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        source = self.plan.source(rank)
        vocabulary = read_model((self.folder / TOKENIZER).read_bytes())
        tokenizer = Tokenizer(vocabulary)
        tally = Tally(self.name, source.name)
        shards = self.folder / TOKENS / f"{rank:05d}"
        if shards.exists():  # a task that was stopped after its shards
            shutil.rmtree(shards)
        writer = ShardWriter(shards, vocabulary, source=source.name, licence=source.licence)
        with writer:
            for batch in _batched(data):
                for document, ids in zip(
                    batch, tokenizer.encode_batch([d.text for d in batch]), strict=True
                ):
                    writer.add(ids)
                    tally.came_in(document.text)
                    tally.went_out(document.text)
                    yield document
        tally.events["tokens"] = writer.manifest.num_tokens
        tally.events["shards"] = len(writer.manifest.shards)
        tally.write(self.folder / "tallies", rank)


class JoinTokens(PipelineStep):
    """One manifest of all tasks' shards, and the mix that the configuration declares (one task).

    `mix.json` gives each source's share of what is trained on: its tokens times its `upsample`,
    over the sum of all.
    """

    type, name = "🔢 - TOKENIZE", "join"

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__()
        self.plan, self.folder = plan, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        tokens = self.folder / TOKENS
        manifest = join_shards(tokens, [f"{r:05d}" for r in range(len(self.plan.pieces))])
        counts = {source.name: 0 for source in self.plan.config.sources}
        for shard in manifest.shards:
            counts[shard.source] += shard.num_tokens
        mix = mix_weights(counts, {s.name: s.upsample for s in self.plan.config.sources})
        (tokens / MIX).write_text(json.dumps(mix, indent=2) + "\n")
        yield from ()


def mix_weights(tokens: dict[str, int], upsample: dict[str, float]) -> dict[str, float]:
    """Each source's share of the mix; they sum to 1 where there are tokens at all."""
    mixed = {name: count * upsample[name] for name, count in tokens.items()}
    total = sum(mixed.values())
    return {name: value / total if total else 0.0 for name, value in mixed.items()}


def _batched(data: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in data:
        batch.append(document)
        size += len(document.text)
        if len(batch) == _DOCUMENTS or size > _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
