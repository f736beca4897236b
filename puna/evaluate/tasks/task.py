"""What a benchmark is: lm-eval's definition, and how local files give the rows that it expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Splits = Mapping[str, list[Row]]  # of a data set, by their names on the hub


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark.

    Prompts, filters and metrics are those of lm-eval's tasks `parts`, which lie in its folder
    `definitions`: one, or several that the benchmark divides into (subjects of MMLU), each under
    the name of its group. `changes` are keys of their configuration that are otherwise here; where
    `definitions` is None, lm-eval has no such task, and they define it alone.

    `rows` reads local files: from the folder `folder` of an evaluation's `--data`, the splits of
    each part, with the columns of the data set on the hub. `local_changes` hold for these only.
    `metric` is the one that counts, under the name that `renames` gives to lm-eval's; `filter` is
    that of its filters whose answers count (None: the first). With `mean_of_groups` the figure is
    the mean over parts, each counting the same, else over questions. `on_hub` is whether the rows
    can come from the hub; `check` raises ValueError where the task cannot be run here at all.
    """

    name: str
    title: str
    definitions: str | None
    parts: Mapping[str, str]
    shots: int
    metric: str
    folder: str
    rows: Callable[[Path], Mapping[str, Splits]]
    changes: Mapping[str, Any] = field(default_factory=dict)
    local_changes: Mapping[str, Any] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    filter: str | None = None
    mean_of_groups: bool = False
    on_hub: bool = True
    check: Callable[[], None] = lambda: None
    notes: tuple[str, ...] = ()
    local_notes: tuple[str, ...] = ()


def one(name: str) -> dict[str, str]:
    """The parts of a benchmark that is not divided: lm-eval's task of this name."""
    return {name: name}
