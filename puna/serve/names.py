"""What `puna serve` is told to serve: `NAME=MODEL`, and `NAME[@MODEL]=ADAPTER`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# No name can be a path to somewhere else, wherever it may end up.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]*(/[A-Za-z0-9][A-Za-z0-9._:@+-]*)*")
_MAX_NAME = 200


class Asked(NamedTuple):
    """A name, and what stands behind it: a model, or with `model` an adapter for that name."""

    name: str
    source: str
    model: str | None = None


def models_asked(arguments: Sequence[str]) -> list[Asked]:
    """`MODEL` or `NAME=MODEL`, each; a path goes by its own name without folders and suffix.

    Raises ValueError for what is no name, and for one that is given twice.
    """
    asked = []
    for argument in arguments:
        name, found, source = argument.partition("=")
        if not found or Path(argument).exists():
            name, source = _own_name(argument), argument
        elif not source:
            raise ValueError(f"{argument} names no model: write NAME=MODEL")
        asked.append(Asked(_checked(name, argument), source))
    return _unique(asked)


def adapters_asked(arguments: Sequence[str], models: Sequence[Asked]) -> list[Asked]:
    """`NAME=ADAPTER`, or `NAME@MODEL=ADAPTER` where there are several models.

    Raises ValueError as `models_asked`, and where it is not said for which of several it is.
    """
    names = [model.name for model in models]
    alone = len({model.source for model in models}) == 1
    asked = []
    for argument in arguments:
        left, found, source = argument.partition("=")
        name, at, model = left.partition("@")
        if not found or not source:
            raise ValueError(f"--lora {argument}: write NAME=ADAPTER, the name clients ask for")
        if not at and not alone:
            raise ValueError(
                f"--lora {argument}: for which model? write {name}@{names[0]}={source}"
            )
        if at and model not in names:
            raise ValueError(f"--lora {argument}: no model is served as {model}")
        asked.append(Asked(_checked(name, argument), source, model if at else names[0]))
    _unique([*models, *asked])
    return asked


def _own_name(model: str) -> str:
    if not Path(model).exists():
        return model
    path = Path(model).resolve()
    return path.stem if path.is_file() else path.name


def _checked(name: str, argument: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise ValueError(
            f"{argument} cannot be served as {name!r}: a name has letters, digits and . _ : @ + - "
            "and may have parts with / between them; give one (NAME=...)"
        )
    return name


def _unique(asked: Iterable[Asked]) -> list[Asked]:
    all_asked = list(asked)
    names = [each.name for each in all_asked]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two are to be served as {twice}; give one another name (NAME=...)")
    return all_asked
