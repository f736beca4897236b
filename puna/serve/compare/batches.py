"""What people chose, in files of one batch each: the paper's weekly batches in small.

A folder of `batch-0001.jsonl`, `batch-0002.jsonl` ...; a line is a comparison as
`data.preferences` reads it, with who made it, when, and of which models.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from puna.chat import Message
from puna.formats.files import atomic_file

Record = dict[str, Any]

_NAME = re.compile(r"batch-(\d{4,})\.jsonl")


class Batches:
    """Comparisons in `folder`, of which `size` make a batch. One process writes them at a time.

    ValueError where a file is damaged: nothing is added to what cannot be read.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        folder.mkdir(parents=True, exist_ok=True)
        counts = dict.fromkeys(self._numbers(), 0)
        self._judged: set[tuple[str, str]] = set()
        for number, record in self._records():
            counts[number] += 1
            self._judged.add(_key(record["annotator"], record["prompt"]))
        self.total = sum(counts.values())
        self._number = max(counts, default=1)
        self.in_batch = counts.get(self._number, 0)

    @property
    def path(self) -> Path:
        """The batch that the last comparison went into, or the first will."""
        return self._path(self._number)

    def is_judged(self, annotator: str, prompt: Sequence[Message]) -> bool:
        """Whether this person has compared answers to this prompt."""
        return _key(annotator, _plain(prompt)) in self._judged

    def add(self, record: Record) -> None:
        """Writes a comparison to the disk; a full batch is followed by the next."""
        if self.in_batch >= self.size:
            self._number, self.in_batch = self._number + 1, 0
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with open(self.path, "ab") as file:
            end = file.tell()
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, end)  # half a line would spoil the next one too
                raise
        self.in_batch += 1
        self.total += 1
        self._judged.add(_key(record["annotator"], record["prompt"]))

    def remove_last(self, identity: str) -> bool:
        """Takes back the last comparison, if it is the one of this `id`."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if not lines or json.loads(lines[-1])["id"] != identity:
            return False
        record = json.loads(lines[-1])
        with atomic_file(self.path, overwrite=True) as file:
            file.write(b"".join(lines[:-1]))
        self.in_batch -= 1
        self.total -= 1
        self._judged.discard(_key(record["annotator"], record["prompt"]))
        return True

    def _path(self, number: int) -> Path:
        return self.folder / f"batch-{number:04d}.jsonl"

    def _numbers(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _records(self) -> Iterator[tuple[int, Record]]:
        for number in self._numbers():
            # Lines of bytes: a text has other ends of lines, which may stand in an answer.
            for place, line in enumerate(self._path(number).read_bytes().splitlines(), 1):
                where = f"{self._path(number)}, line {place}"
                try:
                    record = json.loads(line)
                except ValueError:
                    raise ValueError(f"{where} is no JSON; mend or remove it") from None
                if not isinstance(record, dict) or {"annotator", "prompt"} - record.keys():
                    raise ValueError(f"{where} is no comparison that was collected here")
                yield number, record


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": each.role, "content": each.content} for each in messages]


def _key(annotator: str, prompt: list[dict[str, str]]) -> tuple[str, str]:
    return annotator, json.dumps(prompt, sort_keys=True)
