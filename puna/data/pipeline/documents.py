"""Documents between two passes: one `.jsonl.zst` a task, which appears only once it is whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from puna.data.text import records


class ReadDocuments(PipelineStep):
    """What the same task wrote in an earlier pass."""

    type, name = "📖 - READER", "documents"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from read_documents(self.folder, rank)


class WriteDocuments(PipelineStep):
    """Writes what comes and passes it on."""

    type, name = "💽 - WRITER", "documents"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = document_file(self.folder, rank)
        partial = path.with_name(f".{path.name}.partial")
        with (
            open(partial, "wb") as raw,
            zstandard.ZstdCompressor(level=3).stream_writer(raw) as out,
        ):
            for document in data:
                record = {"text": document.text, "id": document.id, "metadata": document.metadata}
                out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                yield document
        partial.replace(path)


class CountDocuments(PipelineStep):
    """Passes on what comes, and says once a second in a file how much it was."""

    type, name = "📊 - COUNT", "documents"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if data is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{rank:05d}"
        count, said = 0, time.monotonic()
        for document in data:
            count += 1
            if time.monotonic() - said > 1:
                path.write_text(str(count))
                said = time.monotonic()
            yield document
        path.write_text(str(count))


def read_count(path: Path) -> int:
    """What `CountDocuments` said last; 0 while it writes."""
    text = path.read_text()
    return int(text) if text.isdigit() else 0


def document_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank:05d}.jsonl.zst"


def read_documents(folder: Path, rank: int) -> Iterator[Document]:
    """The documents of one task; ValueError if its file is damaged."""
    for record in records(document_file(folder, rank)):
        yield Document(record["text"], record["id"], metadata=record["metadata"])
