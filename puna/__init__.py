"""Puna: the whole Llama 2 system, from text to talking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.engine.async_llm import AsyncLLM as AsyncLLM
    from puna.engine.llm import LLM as LLM
    from puna.engine.params import SamplingParams as SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]

# The names that users import from here -> where they are; loaded when first asked for.
_HOMES = {
    "LLM": "puna.engine.llm",
    "AsyncLLM": "puna.engine.async_llm",
    "SamplingParams": "puna.engine.params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'puna' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
