"""A killed run of a producer goes on, and ends with the same bytes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from puna.formats.resumable import resumable, streamed

Records = list[dict[str, Any]]


def work_on(seen: list[list[int]], die_at: int | None = None) -> Any:
    def work(items: Sequence[int]) -> Records:
        if die_at is not None and die_at in items:
            raise KeyboardInterrupt
        seen.append(list(items))
        # Depends on the whole chunk, as rounding in a padded batch does.
        return [{"item": item, "é": sum(items)} for item in items]

    return work


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    items, settings = list(range(8)), {"model": "cria", "temperature": 1.0}
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    resumable(whole, settings, items, work_on([]), chunk=3)
    for torn in (b"", b'{"item": 3, "\xc3', b'{"item": 3}\n{"item"'):
        for path in tmp_path.glob("broken*"):
            path.unlink()
        with pytest.raises(KeyboardInterrupt):
            resumable(broken, settings, items, work_on([], die_at=4), chunk=3)
        with open(broken, "ab") as file:
            file.write(torn)
        seen: list[list[int]] = []
        ticks = itertools.count()
        resumable(
            broken, settings, items, work_on(seen), chunk=3, advance=functools.partial(next, ticks)
        )
        assert seen == [[3, 4, 5], [6, 7]]
        assert next(ticks) == 8
        assert broken.read_bytes() == whole.read_bytes()
    seen = []
    resumable(broken, settings, items, work_on(seen), chunk=3)
    assert seen == []


def test_a_stream_keeps_each_record_that_came(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.jsonl", []

    def work(items: Sequence[int]) -> Iterator[dict[str, Any]]:
        for item in items:
            if item == 2 and not seen:
                seen.append(list(items))
                raise KeyboardInterrupt
            yield {"item": item}
        seen.append(list(items))

    with pytest.raises(KeyboardInterrupt):
        streamed(path, {}, range(4), work)
    assert path.read_text().count("\n") == 2
    ticks = itertools.count()
    streamed(path, {}, range(4), work, advance=functools.partial(next, ticks))
    assert seen == [[0, 1, 2, 3], [2, 3]]
    assert path.read_text() == "".join(f'{{"item": {n}}}\n' for n in range(4))
    assert next(ticks) == 4
    with pytest.raises(ValueError, match="0 records were made of 2 items"):
        streamed(tmp_path / "b.jsonl", {}, [1, 2], lambda items: [])


def test_other_settings_do_not_continue_it(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    resumable(path, {"temperature": 1.0}, [1, 2], work_on([]), chunk=2)
    with pytest.raises(ValueError, match=r"temperature was 1\.0, is 1\.2"):
        resumable(path, {"temperature": 1.2}, [1, 2], work_on([]), chunk=2)
    with pytest.raises(ValueError, match="items was 2, is 1"):
        resumable(path, {"temperature": 1.0}, [1], work_on([]), chunk=2)
    path.with_suffix(".settings.json").unlink()
    with pytest.raises(ValueError, match=r"not samples\.settings\.json"):
        resumable(path, {"temperature": 1.0}, [1, 2], work_on([]), chunk=2)


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 item or more"):
        resumable(tmp_path / "a.jsonl", {}, [1], work_on([]), chunk=0)
    with pytest.raises(ValueError, match="0 records were made of 1 items"):
        resumable(tmp_path / "a.jsonl", {}, [1], lambda items: [], chunk=1)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def twice(items: Sequence[int]) -> Records:
        with pytest.raises(ValueError, match=r"another process is at work on .*a\.jsonl"):
            resumable(path, {}, [1, 2], twice, chunk=1)
        return [{"item": item} for item in items]

    resumable(path, {}, [1, 2], twice, chunk=1)
    assert len(path.read_text().splitlines()) == 2
