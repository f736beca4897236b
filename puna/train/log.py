"""A run's log.jsonl: a line a step, and a line for each event, in the order in which they came.

An event has the key `event`: "skip", a batch that was not applied, or "rollback" to a step, after
which the steps that come again count. Batches applied and skipped up to a line are its `step` and
`num_skipped` together, so lines are in the order of the data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

Record = dict[str, Any]


@contextlib.contextmanager
def opened(path: Path, position: int) -> Iterator[TextIO]:
    """The log, opened to append; what it says of batches from `position` on is dropped."""
    kept = [record for record in _lines(path) if _position(record) <= position]
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    temporary.replace(path)
    with open(path, "a") as file:
        yield file


def write(log: TextIO, record: Record) -> OSError | None:
    """Adds a line; gives the error where the disk does not take it, for all ranks to hear."""
    try:
        log.write(json.dumps(record) + "\n")
        log.flush()
    except OSError as error:
        return error
    return None


def read_log(path: Path) -> list[Record]:
    """The steps of a run, each once: those that a rollback undid and events are left out.

    So is a last line that was cut off.
    """
    steps: list[Record] = []
    for record in _lines(path):
        if "event" not in record:
            steps.append(record)
        elif record["event"] == "rollback":
            steps = [step for step in steps if step["step"] <= record["step"]]
    return steps


def read_events(path: Path) -> list[Record]:
    """The skips and rollbacks of a run, in their order."""
    return [record for record in _lines(path) if "event" in record]


def _position(record: Record) -> int:
    return record["step"] + record.get("num_skipped", 0)


def _lines(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
