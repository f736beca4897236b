"""Who reads what: every piece of a source is one task, in every pass, on every machine."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.data.pipeline.config import PipelineConfig, Source
from puna.data.pipeline.readers import READERS, suffix_of


@dataclass(frozen=True, slots=True)
class Piece:
    """A file of a source, or `part` of the `parts` of a hub data set."""

    source: str
    path: str = ""
    num_bytes: int = 0
    modified: int = 0  # nanoseconds
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The configuration and its pieces; task `rank` works on `pieces[rank]`."""

    config: PipelineConfig
    pieces: tuple[Piece, ...]

    def source(self, rank: int) -> Source:
        """The source that task `rank` works on."""
        name = self.pieces[rank].source
        return next(source for source in self.config.sources if source.name == name)


def make_plan(config: PipelineConfig) -> Plan:
    """Finds the files of all sources; ValueError for a pattern that finds none."""
    pieces: list[Piece] = []
    for source in config.sources:
        if source.hub:
            pieces += [
                Piece(source.name, part=part, parts=source.hub_parts)
                for part in range(source.hub_parts)
            ]
            continue
        for path in _files(source, config.folder):
            found = path.stat()
            pieces.append(Piece(source.name, str(path), found.st_size, found.st_mtime_ns))
    return Plan(config, tuple(pieces))


def keep_plan(plan: Plan, folder: Path) -> None:
    """Writes the plan to a new build, or checks that a begun one still has it.

    Raises ValueError if the configuration or an input file is another than when it was begun.
    """
    path = folder / "plan.json"
    pieces = [dataclasses.asdict(piece) for piece in plan.pieces]
    values = {"config": plan.config.to_dict(), "pieces": pieces}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
        return
    before = _read(path)
    changed = _difference(before.get("config"), json.loads(text)["config"], "")
    if changed is not None:
        raise ValueError(
            f"{folder} was begun with another configuration ({changed}); "
            "choose another folder, or remove this one"
        )
    if before.get("pieces") != pieces:
        other = [piece["path"] for piece in pieces if piece not in before.get("pieces", [])]
        which = other[0] if other else "a file is gone"
        raise ValueError(
            f"the input changed since {folder} was begun ({which}); "
            "choose another folder, or remove this one"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is damaged; remove the folder and build again") from None
    return values if isinstance(values, dict) else {}


def _difference(before: Any, now: Any, where: str) -> str | None:
    """Where two JSON values first differ, as a dotted path."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            at = f"{where}.{key}".lstrip(".")
            if (key in before) != (key in now):
                return at
            if (inner := _difference(before[key], now[key], at)) is not None:
                return inner
        return None
    return None if before == now else where


def _files(source: Source, folder: Path) -> list[Path]:
    found: list[Path] = []
    for pattern in source.path:
        path = folder / pattern
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            found += [p for p in sorted(path.rglob("*")) if p.is_file() and suffix_of(p) in READERS]
        else:
            anchor = Path(path.anchor)
            found += sorted(p for p in anchor.glob(str(path.relative_to(anchor))) if p.is_file())
        if not found:
            raise ValueError(
                f"source {source.name}: no files at {path}; read are {', '.join(READERS)}"
            )
    for path in found:
        if suffix_of(path) not in READERS:
            raise ValueError(
                f"source {source.name}: {path} is of an unknown kind; known are "
                f"{', '.join(READERS)}"
            )
    return [path.resolve() for path in dict.fromkeys(found)]
