"""Named runs: one file each, and its line in this table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType


def _module(name: str) -> Callable[[], ModuleType]:
    return lambda: importlib.import_module(f"puna.recipes.{name}")


# name -> its module, imported when called: `config()`, `build_corpus(sources, path)`,
# `tokenizer(corpus)`
RECIPES: dict[str, Callable[[], ModuleType]] = {"cria": _module("cria")}
