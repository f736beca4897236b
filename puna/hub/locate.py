"""A model's name -> where it lies on this machine: a path, a shipped model, or one from a hub."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from puna.catalog import find
from puna.hub.names import HubName, parse

# The base, and what it was aligned to.
SHIPPED = ("cria", "cria-chat")
# A name that ends so and is no file is a slip in a path, not a repository.
_FILE_SUFFIXES = (".gguf", ".bin", ".pth", ".safetensors", ".json", ".model")


class NotPulledError(ValueError):
    """A hub's model that is not on this machine; `name` is its name."""

    def __init__(self, name: HubName) -> None:
        super().__init__(f"{name} is not on this machine; puna pull {name} downloads it")
        self.name = name


def locate(model: str) -> Path:
    """The file or folder that a path, a shipped model's name or a hub name means.

    Asks no network: raises NotPulledError for a hub's model that was not downloaded, ValueError
    for what is nothing.
    """
    if Path(model).exists():
        return Path(model)
    if model in SHIPPED:
        return shipped_path(model)
    name = hub_name(model)
    if name is None:
        raise ValueError(f"no such file or folder: {model}")

    from puna.hub.cache import find_pulled

    path = find_pulled(name)
    if path is None:
        raise NotPulledError(name)
    return path


def hub_name(model: str) -> HubName | None:
    """`model` as a name on a hub; None if it rather is a path that is not there."""
    base = re.split("[@:]", model, maxsplit=1)[0]
    if find(base):
        return parse(model)
    if "/" not in base or (base == model and Path(base).suffix in _FILE_SUFFIXES):
        return None
    try:
        return parse(model)
    except ValueError:
        return None


def shipped_path(name: str) -> Path:
    return Path(str(files("puna") / "models" / f"{name}.gguf"))
