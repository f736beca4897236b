"""The folder of an evaluation: begun, gone on with, and its results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.commands.producers import write_json
from puna.evaluate.results import Results, Sample, TaskResult, write_results
from puna.formats.files import atomic_file


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder, with its config.json, or goes on with it. ValueError for one that holds
    other things, or an evaluation with other settings."""
    path = out / "config.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the name of a folder")
    if path.is_file():
        known = json.loads(path.read_bytes())
        for name in sorted(known.keys() | settings.keys()):
            if known.get(name) != settings.get(name):
                raise ValueError(
                    f"{out} was begun with other settings ({name} was {known.get(name)}, is "
                    f"{settings.get(name)}); go on with those, or give another folder"
                )
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds other things; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def write_samples(out: Path, task: str, samples: Sequence[Sample]) -> None:
    """Writes all samples of a task, in the place of those that were there."""
    path = out / "samples" / f"{task}.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = (json.dumps(dataclasses.asdict(each), ensure_ascii=False) for each in samples)
    with atomic_file(path, overwrite=True) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def keep(
    out: Path, model: str, suite: str, settings: dict[str, Any], tasks: Sequence[TaskResult],
    seconds: float,
) -> Results:  # fmt: skip
    """Writes the results, in the place of those of an earlier run of the same evaluation."""
    results = Results(model, suite, settings, tuple(tasks), seconds)
    (out / "results.json").unlink(missing_ok=True)
    write_results(out, results)
    return results
