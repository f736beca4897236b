"""Named runs: a function each, its line in this table; `dial.py` makes those of new sizes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.train.pretrain import PretrainConfig


def _module(name: str) -> Callable[[], ModuleType]:
    return lambda: importlib.import_module(f"puna.recipes.{name}")


def _function(module: str, name: str) -> Callable[[], PretrainConfig]:
    def config() -> PretrainConfig:
        made: Any = getattr(importlib.import_module(f"puna.recipes.{module}"), name)()
        return made

    return config


# name -> what makes its config, imported when called.
RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "cria": _function("cria", "config"),
    "tiny": _function("tiny", "tiny"),
    "110m": _function("small", "base_110m"),
    "1b": _function("small", "base_1b"),
    "7b": _function("llama2", "base_7b"),
    "13b": _function("llama2", "base_13b"),
    "34b": _function("llama2", "base_34b"),
    "70b": _function("llama2", "base_70b"),
}

# Recipes that make their corpus from a folder of sources -> their module, imported when called,
# with `build_corpus(sources, path)` and `tokenizer(corpus)`. The others are for any corpus.
WITH_SOURCES: dict[str, Callable[[], ModuleType]] = {"cria": _module("cria")}
