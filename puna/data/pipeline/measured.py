"""Any datatrove step, measured: what came in, what went out, what was dropped and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from puna.data.pipeline.config import Source
from puna.data.pipeline.plan import Plan
from puna.data.pipeline.readers import read_file, read_hub
from puna.data.pipeline.settings import StepSettings
from puna.data.pipeline.tally import Tally

# datatrove's own counts, which a tally has already
_COUNTED = ("total", "forwarded", "dropped", "doc_len", "doc_len_tokens")


class Dropped:
    """Where a datatrove filter puts what it drops (its `exclusion_writer`): into the tally."""

    def __init__(self, tally: Tally, reason: str) -> None:
        self.tally, self.reason = tally, reason

    def write(self, document: Document, rank: int = 0) -> None:
        self.tally.drop(document, document.metadata.pop("filter_reason", self.reason))

    def __enter__(self) -> Dropped:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


# The step itself, from its settings for a source, where the dropped go, and the source. It is sent
# to other processes: a function of a module, or a partial of one.
MakeStep = Callable[[Any, Dropped, Source], PipelineStep]


class Measured(PipelineStep):
    """The step that `make` builds from the settings of the task's source, if it is on for it."""

    type = "⚖ - MEASURED"

    def __init__(self, step: str, make: MakeStep, plan: Plan, tallies: Path) -> None:
        self.name = step
        super().__init__()
        self.make, self.plan, self.tallies = make, plan, tallies

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        source = self.plan.source(rank)
        settings: StepSettings = self.plan.config.settings[source.name][self.name]
        if not settings.is_on:
            yield from data
            return
        tally = Tally(self.name, source.name)
        step = self.make(settings, Dropped(tally, self.name), source)
        for document in step.run(_counted(data, tally), rank, world_size):
            tally.went_out(document.text)
            yield document
        for event, values in step.stats.stats.items():
            if event not in _COUNTED and not event.startswith("dropped_"):
                tally.events[event] += round(values.total)
        tally.write(self.tallies, rank)


class ReadSources(PipelineStep):
    """The first step: the documents of a task's piece, without those that hold no text."""

    type, name = "📖 - READER", "read"

    def __init__(self, plan: Plan, tallies: Path) -> None:
        super().__init__()
        self.plan, self.tallies = plan, tallies

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        piece, source = self.plan.pieces[rank], self.plan.source(rank)
        tally = Tally(self.name, source.name)
        path = Path(piece.path)
        records = (
            read_hub(source, piece.part, piece.parts) if source.hub else read_file(source, path)
        )
        name = f"{piece.part:05d}" if source.hub else path.name
        for number, (text, metadata) in enumerate(records, start=1):
            text = _with_whole_characters(text)
            metadata = {key: _with_whole_characters(value) for key, value in metadata.items()}
            document = Document(text, f"{source.name}/{name}/{number}", metadata=metadata)
            tally.came_in(text)
            if (reason := _unreadable(text)) is not None:
                tally.drop(document, reason)
                continue
            tally.went_out(text)
            yield document
        tally.write(self.tallies, rank)


def _counted(data: Iterator[Document], tally: Tally) -> Iterator[Document]:
    for document in data:
        tally.came_in(document.text)
        yield document


_HALF = re.compile("[\ud800-\udfff]")


def _with_whole_characters(text: str) -> str:
    """JSON can write half of a UTF-16 pair, which no file can hold; it becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _HALF.sub("\ufffd", text)
    return text


_CONTROL = dict.fromkeys(c for c in range(32) if chr(c) not in "\t\n\v\f\r")
_MAX_CONTROL = 0.01  # share of characters that are controls or U+FFFD before text is no text


def _unreadable(text: str) -> str | None:
    """Why a document is no text: "empty" or "binary"; None if it is one."""
    if not text.strip():
        return "empty"
    odd = len(text) - len(text.translate(_CONTROL)) + text.count("\ufffd")
    return "binary" if "\0" in text or odd > _MAX_CONTROL * len(text) else None
