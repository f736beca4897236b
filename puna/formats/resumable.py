"""Work on a list, appended chunk by chunk to a file, so that a killed run goes on where it was."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from puna.formats.files import atomic_file
from puna.formats.json_text import read_json

Record = dict[str, Any]
_T = TypeVar("_T")


def resumable(
    path: Path,
    settings: Record,
    items: Sequence[_T],
    work: Callable[[Sequence[_T]], Sequence[Record]],
    *,
    chunk: int,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Appends to the JSONL file `path` what `work` makes of `items`: a record each, in order.

    `work` gets the same chunks whether or not the run was broken off, so where its result depends
    on them alone, so does the file. `settings` (JSON) say what else it depends on; they are kept
    beside the file, which other settings do not continue: ValueError, as where another process is
    at work on it. `advance` is called for each record, at once for those that are there.
    """
    if chunk < 1:
        raise ValueError(f"a chunk is 1 item or more, not {chunk}")
    with _appending(path, settings, len(items), chunk) as (file, done):
        for _ in range(done):
            advance()
        for start in range(done, len(items), chunk):
            part = items[start : start + chunk]
            found = work(part)
            if len(found) != len(part):
                raise ValueError(f"{len(found)} records were made of {len(part)} items")
            _append(file, found)
            for _ in part:
                advance()


def streamed(
    path: Path,
    settings: Record,
    items: Sequence[_T],
    work: Callable[[Sequence[_T]], Iterable[Record]],
    *,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """The same, record by record as `work` gives those of the items that are left, in their order:
    for work on several at once whose results depend on the item alone."""
    with _appending(path, settings, len(items), 1) as (file, done):
        for _ in range(done):
            advance()
        for record in work(items[done:]):
            _append(file, [record])
            done += 1
            advance()
        if done != len(items):
            raise ValueError(f"{done} records were made of {len(items)} items")


@contextlib.contextmanager
def _appending(
    path: Path, settings: Record, count: int, chunk: int
) -> Iterator[tuple[BinaryIO, int]]:
    """The file, open at the end of its whole chunks, and how many records are in these."""
    _check_settings(path, settings | {"items": count, "chunk": chunk})
    with open(path, "ab") as file:
        _lock(file, path)
        yield file, _keep_whole_chunks(path, chunk, count)


def _append(file: BinaryIO, records: Sequence[Record]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write("".join(lines).encode())
    file.flush()
    os.fsync(file.fileno())


def _lock(file: BinaryIO, path: Path) -> None:
    """ValueError where another process appends to the file; the lock ends with the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is at work on {path}; wait for it") from None
    except OSError:
        pass  # the file system has no locks: there nobody is told


def _check_settings(path: Path, settings: Record) -> None:
    beside = path.with_suffix(".settings.json")
    settings = json.loads(json.dumps(settings))  # as they come back
    if beside.exists():
        known = dict(read_json(beside))
        for name in sorted(known.keys() | settings.keys()):
            old, new = known.get(name), settings.get(name)
            if old != new:
                raise ValueError(
                    f"{path} was begun with other settings ({name} was {old}, is {new}); go on "
                    "with those, or give another folder"
                )
        return
    if path.exists():
        raise ValueError(f"{path} exists, but not {beside.name}; give another folder")
    with atomic_file(beside) as file:
        file.write(json.dumps(settings, indent=1, ensure_ascii=False).encode())


def _keep_whole_chunks(path: Path, chunk: int, count: int) -> int:
    """Cuts off what a kill left of a chunk; the number of records that stay."""
    ends, at = [0], 0
    with open(path, "rb") as file:
        for line in file:
            at += len(line)
            if line.endswith(b"\n"):
                ends.append(at)
    whole = len(ends) - 1
    if whole > count:
        raise ValueError(f"{path} has {whole} records, more than the {count} that are asked for")
    kept = whole if whole == count else whole // chunk * chunk
    os.truncate(path, ends[kept])
    return kept
