"""Goes through the stages of all versions, and on where it was: a stage that is done stays so."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from puna.formats.files import atomic_file
from puna.formats.json_text import read_json
from puna.recipes.alignment.config import AlignConfig, Stage, Values

RESULT, CONFIG = "result.json", "config.json"


@dataclass(frozen=True, slots=True)
class State:
    """What the stages so far have made: paths, which the next ones take up.

    `policy` is the newest model; `helpfulness` and `safety` the newest reward models, whose mean
    score counts; `extra` examples that fine-tuning adds to the declared ones; `winners` what
    rejection sampling won for each version, the oldest first; `helpfulness_data` and `safety_data`
    comparisons that reward models add to the declared ones.
    """

    policy: str
    helpfulness: tuple[str, ...] = ()
    safety: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    winners: tuple[str, ...] = ()
    helpfulness_data: tuple[str, ...] = ()
    safety_data: tuple[str, ...] = ()

    def replaced(self, **changes: Any) -> State:
        return dataclasses.replace(self, **changes)


class Console(Protocol):
    """How a stage tells of its work."""

    def training(self, title: str, run: Path, steps: int) -> AbstractContextManager[Values]:
        """Gives the options of `train.loop.train` that show the progress of a run."""
        ...

    def counting(self, title: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
        """Gives a function to call for each thing that is done."""
        ...

    def say(self, text: str) -> None:
        """A line."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """Where a stage works: its folder, what is declared, what is there, and whom to tell."""

    folder: Path
    config: AlignConfig
    state: State
    seed: int
    console: Console


class StoppedError(Exception):
    """A signal stopped a stage, whose state is saved."""


# What a stage does: it works in its folder, resumably, and gives what there is after it, and
# figures for the report.
Run = Callable[[Context, Any], tuple[State, Values]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of stage: what it does, what its options are (a frozen dataclass), which data it
    needs, and whether a new model comes of it, to be measured."""

    run: Run
    options: type
    needs: tuple[str, ...] = ()
    is_model: bool = False

    def resolved(self, stage: Stage) -> Any:
        """The stage's options; ValueError for one that there is not, or of a wrong value."""
        known = [each.name for each in dataclasses.fields(self.options)]
        if unknown := sorted(set(stage.options) - set(known)):
            raise ValueError(
                f"stage {stage.kind} has no option {', '.join(unknown)}; it has {', '.join(known)}"
            )
        for each in dataclasses.fields(self.options):
            if each.name in stage.options:
                _check_option(stage.kind, each.name, str(each.type), stage.options[each.name])
        try:
            return self.options(**stage.options)
        except TypeError as error:
            raise ValueError(f"stage {stage.kind}: {error}") from None


# Annotations of options -> what a recipe may say, and how that is called.
_TYPES: dict[str, tuple[tuple[type[Any], ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
}
_MAY_BE_0 = frozenset({"prompts", "patience", "held_out", "temperature", "warmup_steps", "beta"})


def _check_option(kind: str, name: str, annotation: str, value: Any) -> None:
    """ValueError where a value is of another type than its option, or a number that is too low."""
    types, called = _TYPES[annotation.removesuffix(" | None")]
    if isinstance(value, bool) or not isinstance(value, types):
        raise ValueError(f"stage {kind}: {name} is {called}, not {value!r}")
    if types == (str,) or 0 < float(value) < math.inf or (value == 0 and name in _MAY_BE_0):
        return
    least = "0 or more" if name in _MAY_BE_0 else "positive"
    raise ValueError(f"stage {kind}: {name} must be {least}, not {value}")


@dataclass(frozen=True, slots=True)
class Done:
    """A stage that is done."""

    version: str
    name: str  # of its folder
    folder: Path
    state: State
    figures: Values
    seconds: float


def check(config: AlignConfig, kinds: dict[str, Kind]) -> None:
    """ValueError for a stage that there is not, wrong options, and data that none declares."""
    for version in config.versions:
        for stage in version.stages:
            if stage.kind not in kinds:
                raise ValueError(f"no stage {stage.kind!r}; there are {', '.join(kinds)}")
            kind = kinds[stage.kind]
            kind.resolved(stage)
            for name in kind.needs:
                if not getattr(config.data, name):
                    raise ValueError(
                        f"{version.name}: stage {stage.kind} needs data that is not declared: "
                        f"{name} of [data]"
                    )


def run(
    out: Path,
    config: AlignConfig,
    kinds: dict[str, Kind],
    console: Console,
    measure: Callable[[Context, Path | None], Values],
) -> Iterator[Done]:
    """Each stage when it is done, those from before at once; first of all the base is measured.

    `measure` gives figures of a new model, beside what its stage gives; it gets the folder of the
    model before. ValueError where `out` is of another alignment; StoppedError where a signal came.
    """
    _same_config(out, config)
    state, before = State(config.base), None
    for version, name, stage in _all(config):
        kind, folder = kinds.get(stage.kind, _BASE), out / version / name
        done = _read(folder, version, name)
        if done is None:
            folder.mkdir(parents=True, exist_ok=True)
            console.say(f"{version} {name}")
            begun = time.perf_counter()
            context = Context(folder, config, state, _seed(config, version, name), console)
            state, figures = kind.run(context, kind.resolved(stage))
            if kind.is_model:
                figures |= measure(dataclasses.replace(context, state=state), before)
            seconds = time.perf_counter() - begun
            _write(folder, state, figures, seconds)
            done = Done(version, name, folder, state, figures, seconds)
        state = done.state
        if kind.is_model:
            before = folder
        yield done


def finished(out: Path, config: AlignConfig) -> list[Done]:
    """The stages that are done, in their order."""
    found = (_read(out / version / name, version, name) for version, name, _ in _all(config))
    return [done for done in found if done is not None]


def num_stages(config: AlignConfig) -> int:
    """How many there are, the measurement of the base among them."""
    return sum(1 for _ in _all(config))


@dataclass(frozen=True, slots=True)
class _Nothing:
    """The options of what has none."""


# What is measured before all versions, where there is something to measure by.
_BASE = Kind(lambda context, options: (context.state, {}), _Nothing, is_model=True)
_BASE_NAME = "base"


def _all(config: AlignConfig) -> Iterator[tuple[str, str, Stage]]:
    """Every stage with its version and the name of its folder."""
    if config.data.held_out is not None:
        yield _BASE_NAME, "model", Stage(_BASE_NAME)
    for version in config.versions:
        for name, stage in version.folders():
            yield version.name, name, stage


def _seed(config: AlignConfig, version: str, name: str) -> int:
    digest = hashlib.blake2b(f"{config.seed} {version} {name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % 2**31


def _same_config(out: Path, config: AlignConfig) -> None:
    path, values = out / CONFIG, config.to_dict()
    if path.is_file():
        if read_json(path) != values:
            raise ValueError(
                f"{out} is of another alignment: {path} differs from what is asked; go on with "
                "that, or give another --out"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is no alignment, and not empty; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())


def _write(folder: Path, state: State, figures: Values, seconds: float) -> None:
    values = {"state": dataclasses.asdict(state), "figures": figures, "seconds": seconds}
    with atomic_file(folder / RESULT, overwrite=True) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())


def _read(folder: Path, version: str, name: str) -> Done | None:
    path = folder / RESULT
    if not path.is_file():
        return None
    values: Any = read_json(path)
    try:
        state = values["state"]
        state |= {key: tuple(value) for key, value in state.items() if isinstance(value, list)}
        return Done(
            version, name, folder, State(**state), values["figures"], float(values["seconds"])
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged; remove it, and the stage is done again") from None
