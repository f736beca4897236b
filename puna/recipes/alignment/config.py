"""An alignment as declared: the model it starts from, its data, and versions of stages."""

from __future__ import annotations

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Data:
    """Files of JSON lines; what a stage needs and is not there is an error before any begins.

    - `sft`: dialogs to learn; `prompts`: dialogs to answer, `is_safety` where they provoke;
      `ppo_prompts`: those that PPO answers, by default `prompts`.
    - `preferences`: comparisons for the Helpfulness reward model, `safety` those for the other.
    - `instructions`: what Ghost Attention's dialogs keep to, by default the personas of
      `recipes.tasks`. `red_team`: prompts that provoke, for context distillation.
    - `held_out`: prompts that each version answers, to be compared; where they are tasks
      (`recipes.tasks`) there is a gold score.
    - `questions`, `held_out_questions`: dialogs whose user turns Ghost Attention asks, and
      obedience is measured with; by default those of `prompts` that have one turn alone.
    """

    sft: tuple[Path, ...] = ()
    prompts: Path | None = None
    ppo_prompts: Path | None = None
    preferences: tuple[Path, ...] = ()
    safety: tuple[Path, ...] = ()
    instructions: Path | None = None
    red_team: Path | None = None
    held_out: Path | None = None
    questions: Path | None = None
    held_out_questions: Path | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage; `options` are those of its row in `stages.STAGES`."""

    kind: str
    options: Values = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the model, named V1, V2 ... in the paper."""

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"a version's name is letters, digits, - and _, not {self.name!r}")

    def folders(self) -> list[tuple[str, Stage]]:
        """The stages, each with the name of its folder: its kind, numbered where it comes again."""
        seen: Counter[str] = Counter()
        found = []
        for stage in self.stages:
            seen[stage.kind] += 1
            number = seen[stage.kind]
            found.append((stage.kind if number == 1 else f"{stage.kind}-{number}", stage))
        return found


@dataclass(frozen=True, slots=True)
class AlignConfig:
    """`base` is where every version's fine-tuning begins: a path, a shipped model or a hub's. A new
    model is measured by answers to held-out prompts of `max_tokens` at most."""

    base: str
    data: Data
    versions: tuple[Version, ...]
    seed: int = 0
    max_tokens: int = 96

    def __post_init__(self) -> None:
        names = [version.name for version in self.versions]
        if not names:
            raise ValueError("there is no version; declare one at least, as [[version]]")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, not {self.max_tokens}")
        if "base" in names:
            raise ValueError("no version can be named base: that is where they begin")
        if len(set(names)) < len(names):
            raise ValueError(f"two versions have one name; these are {', '.join(names)}")

    def to_dict(self) -> Values:
        return {
            "base": self.base,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "data": {
                name: None if value is None else _shown(value)
                for name, value in (
                    (each.name, getattr(self.data, each.name)) for each in dataclasses.fields(Data)
                )
            },
            "versions": [
                {
                    "name": version.name,
                    "stages": [{"kind": s.kind} | dict(s.options) for s in version.stages],
                }
                for version in self.versions
            ],
        }


def read_align_config(path: Path) -> AlignConfig:
    """An alignment of a TOML file; its paths are relative to it.

    ```toml
    base = "cria"
    [data]
    sft = ["sft.jsonl"]
    [[version]]
    name = "V1"
    stages = [{ kind = "sft", epochs = 3 }]
    ```
    ValueError for what is no such file, unknown keys and files that are not there.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    try:
        return _config(values, path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _config(values: Values, folder: Path) -> AlignConfig:
    _check_keys(values, {"base", "seed", "max_tokens", "data", "version"}, "the file")
    base = values.get("base", "cria")
    numbers = {name: values[name] for name in ("seed", "max_tokens") if name in values}
    if not isinstance(base, str) or not all(type(each) is int for each in numbers.values()):
        raise ValueError("base is a model's name or path, seed a whole number, as is max_tokens")
    versions = values.get("version", [])
    if not isinstance(versions, list):
        raise ValueError("versions are written as [[version]]")
    local = folder / base
    return AlignConfig(
        str(local) if local.exists() else base,
        _data(values.get("data", {}), folder),
        tuple(_version(each) for each in versions),
        **numbers,
    )


def _data(values: Any, folder: Path) -> Data:
    if not isinstance(values, dict):
        raise ValueError("data is a table, [data]")
    known = {each.name: each for each in dataclasses.fields(Data)}
    _check_keys(values, set(known), "[data]")
    found: Values = {}
    for name, value in values.items():
        several = known[name].default == ()
        paths = value if several and isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in paths):
            raise ValueError(f"[data] {name} is {'paths' if several else 'a path'}, not {value!r}")
        resolved = tuple((folder / each).resolve() for each in paths)
        for each in resolved:
            if not each.is_file():
                raise ValueError(f"[data] {name}: there is no file {each}")
        found[name] = resolved if several else resolved[0]
    return Data(**found)


def _version(values: Any) -> Version:
    if not isinstance(values, dict):
        raise ValueError("a version is a table, [[version]]")
    _check_keys(values, {"name", "stages"}, "[[version]]")
    stages = values.get("stages", [])
    if not isinstance(stages, list) or not stages:
        raise ValueError("a version has stages, a list of { kind = ... }")
    return Version(str(values.get("name", "")), tuple(_stage(each) for each in stages))


def _stage(values: Any) -> Stage:
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise ValueError(f"a stage is a table with its kind, such as {{ kind = 'sft' }}: {values}")
    return Stage(values["kind"], {k: v for k, v in values.items() if k != "kind"})


def _check_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(values) - known):
        names = ", ".join(sorted(known))
        raise ValueError(f"{where} has no {', '.join(unknown)}; it has {names}")


def _shown(value: Path | tuple[Path, ...]) -> str | list[str]:
    return str(value) if isinstance(value, Path) else [str(each) for each in value]
