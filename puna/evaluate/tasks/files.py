"""Reading the rows of benchmarks from local files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from puna.evaluate.tasks.task import Row, Splits


def jsonl(path: Path) -> list[Row]:
    """A row a line. ValueError where the file is missing or a line is not an object."""
    rows = []
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} is not an object")
        rows.append(row)
    return rows


def comma_separated(path: Path) -> list[dict[str, str]]:
    """Rows by the names in the first line. ValueError where the file is missing."""
    return list(csv.DictReader(io.StringIO(text_of(path), newline="")))


def splits_of(part: str, *names: str) -> Callable[[Path], Mapping[str, Splits]]:
    """Reads `NAME.jsonl` for each split; its columns are those of the hub."""
    return lambda folder: {part: {name: jsonl(folder / f"{name}.jsonl") for name in names}}


def text_of(path: Path) -> str:
    """All of a file. ValueError where it is missing or no UTF-8."""
    try:
        # The mark at the start is not part of the first column's name.
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; --data is the folder of the benchmarks") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start})") from None
