"""What a corpus is built from and how: the configuration, a TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from puna.data.pipeline.kinds import KINDS
from puna.data.pipeline.settings import STEP_SETTINGS, StepSettings

_OF_ALL = ("exact", "minhash", "decontaminate")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """One source: what it is called, where it lies, what may be done with it, and how it counts.

    `path` holds files, folders or patterns, relative to the configuration; `hub` names a data set
    instead. `upsample` is how often its tokens are seen while another source's are seen once.
    """

    name: str
    licence: str
    path: tuple[str, ...] = ()
    hub: str = ""
    hub_options: dict[str, Any] = field(default_factory=dict)
    hub_parts: int = 8  # pieces of a hub data set that are read side by side
    kind: str = "plain"
    text_key: str = "text"
    separator: str | None = None  # line that parts documents in a .txt file
    upsample: float = 1.0
    steps: dict[str, Any] = field(default_factory=dict)  # what is otherwise for this source

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name):
            raise ValueError(f"name {self.name!r}: letters, digits, '-', '_' and '.' are allowed")
        if bool(self.path) == bool(self.hub):
            raise ValueError(f"source {self.name}: give either path or hub")
        if self.kind not in KINDS:
            raise ValueError(
                f"source {self.name}: unknown kind {self.kind!r}; known are {', '.join(KINDS)}"
            )
        if not self.licence:
            raise ValueError(f"source {self.name}: say under which licence it may be used")
        if self.upsample <= 0:
            raise ValueError(f"source {self.name}: upsample must be above 0, not {self.upsample}")
        if self.hub_parts < 1:
            raise ValueError(f"source {self.name}: hub_parts must be 1 or more")


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Ids of what is left. `tokenizer` is a file or a shipped model's name."""

    enabled: bool = True
    tokenizer: str = "cria"


@dataclass(frozen=True, slots=True)
class Run:
    """Where the work is done; it changes nothing in the result."""

    executor: str = "local"
    workers: int = 1
    options: dict[str, Any] = field(default_factory=dict)  # datatrove's, of that executor

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, not {self.workers}")


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """A whole build. `settings[source][step]` is resolved: the general, then the source's own."""

    sources: tuple[Source, ...]
    settings: dict[str, dict[str, StepSettings]]
    tokenize: Tokenize = Tokenize()
    run: Run = Run()
    folder: Path = Path()  # what relative paths start from

    def enabled(self, step: str) -> bool:
        """Is the step on for any source?"""
        return any(settings[step].is_on for settings in self.settings.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON; without `run`, which decides nothing of the result."""
        return {
            "sources": [dataclasses.asdict(source) for source in self.sources],
            "settings": {
                name: {step: dataclasses.asdict(values) for step, values in steps.items()}
                for name, steps in self.settings.items()
            },
            "tokenize": dataclasses.asdict(self.tokenize),
            "folder": str(self.folder.resolve()),
        }


def read_config(path: Path) -> PipelineConfig:
    """The configuration in a TOML file; ValueError names the file, the key and what is wrong."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return config_from_dict(values, path.parent)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def config_from_dict(values: dict[str, Any], folder: Path = Path()) -> PipelineConfig:
    """The configuration of parsed TOML: tables `source` (several), `steps`, `tokenize`, `run`."""
    values = dict(values)
    tables = values.pop("source", [])
    if not isinstance(tables, list) or not tables:
        raise ValueError("no sources: give at least one [[source]]")
    if not all(isinstance(table, dict) for table in tables):
        raise ValueError("each source is a table: write [[source]]")
    sources = tuple(
        build(Source, _with_list(table), f"source {table.get('name', number)}")
        for number, table in enumerate(tables, start=1)
    )
    names = [source.name for source in sources]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two sources are called {double[0]}")
    general = values.pop("steps", {})
    settings = {
        source.name: _settings(general, source.steps, f"source {source.name}: ")
        for source in sources
    }
    tokenize = build(Tokenize, values.pop("tokenize", {}), "tokenize")
    run = build(Run, values.pop("run", {}), "run")
    if values:
        raise ValueError(f"unknown key {min(values)!r}; known are source, steps, tokenize, run")
    for step in _OF_ALL:
        first = settings[names[0]][step]
        for name in names:
            if replace(settings[name][step], enabled=first.enabled) != first:
                raise ValueError(
                    f"source {name}: steps.{step} compares all documents; a source can only "
                    f"switch it off"
                )
    return PipelineConfig(sources, settings, tokenize, run, folder)


def build(kind: type[T], values: Any, where: str) -> T:
    """A dataclass of parsed TOML; unknown and missing keys and wrong types are ValueErrors."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(fields)}")
    types = typing.get_type_hints(kind)
    taken = {
        name: _checked(value, types[name], f"{where}.{name}") for name, value in values.items()
    }
    missing = [
        name
        for name, f in fields.items()
        if name not in taken
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: {missing[0]!r} is missing")
    return kind(**taken)


def _checked(value: Any, expected: Any, where: str) -> Any:
    """The value as its field has it: lists become tuples, whole numbers pass as floats."""
    if isinstance(expected, UnionType):
        expected = next(t for t in typing.get_args(expected) if t is not type(None))
    origin = typing.get_origin(expected) or expected
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {value!r}")
        item = typing.get_args(expected)[0]
        return tuple(_checked(v, item, where) for v in value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {_WORDS[origin]}, not {value!r}")
    return value


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false",
          dict: "a table"}  # fmt: skip


def _with_list(table: dict[str, Any]) -> dict[str, Any]:
    """`path = "one"` is `path = ["one"]`."""
    path = table.get("path")
    return table | {"path": [path]} if isinstance(path, str) else table


def _settings(general: Any, own: Any, where: str) -> dict[str, StepSettings]:
    """Each step's settings: its defaults, then the general table, then the source's own.

    `step = false` stands for `{ enabled = false }`.
    """
    resolved = {}
    for name, tables in (("steps", general), (f"{where}steps", own)):
        if not isinstance(tables, dict):
            raise ValueError(f"{name} must be a table, not {tables!r}")
        if unknown := sorted(set(tables) - set(STEP_SETTINGS)):
            known = ", ".join(STEP_SETTINGS)
            raise ValueError(f"{name}: unknown step {unknown[0]!r}; known are {known}")
    for step, kind in STEP_SETTINGS.items():
        merged: dict[str, Any] = {}
        for name, tables in (("steps", general), (f"{where}steps", own)):
            value = tables.get(step, {})
            value = {"enabled": value} if isinstance(value, bool) else value
            build(kind, value, f"{name}.{step}")  # blames the table that has the mistake
            merged |= value
        resolved[step] = build(kind, merged, f"{where}steps.{step}")
    return resolved
