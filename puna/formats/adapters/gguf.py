"""GGUF adapters: `general.type` adapter, pairs named `….weight.lora_a` and `….weight.lora_b`.

https://github.com/ggml-org/llama.cpp, convert_lora_to_gguf.py and src/llama-adapter.cpp.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from puna.formats import gguf, names
from puna.formats.adapters.adapter import Adapter, Half, paired, transposed
from puna.formats.gguf_file import Header, read_header, read_tensors

NAME = "gguf"

_NAME = re.compile(r"(.+)\.lora_([ab])")
# Key -> what it must be.
_REQUIRED = {
    "general.type": "adapter",
    "general.architecture": "llama",
    "adapter.type": "lora",
}
_ALPHA = "adapter.lora.alpha"
_UNSUPPORTED = "adapter.alora.invocation_tokens"
_EMBEDDING = "tok_embeddings.weight"


def detect(path: Path) -> bool:
    return gguf.detect(path)


def read(path: Path) -> Adapter:
    """Opens a file; FormatError if it is damaged, a model, or another kind of adapter."""
    header = read_header(path)
    metadata, tensors = header.metadata, read_tensors(header)
    for key, value in _REQUIRED.items():
        if metadata.get(key) != value:
            raise header.error(key, f"is {metadata.get(key)!r}, not '{value}'")
    if _UNSUPPORTED in metadata:
        raise header.error(_UNSUPPORTED, "asks for an activated LoRA: not supported")
    alpha = _alpha(header)
    halves: dict[tuple[str, str], Half] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise Half(tensor, name).error(path, "is no half of a low-rank pair: not supported")
        canonical, side = names.GGUF.canonical(match[1]) or match[1], match[2]
        if canonical == _EMBEDDING:
            # Stored for a lookup by row: lora_a (vocabulary, rank), lora_b (width, rank).
            side = "b" if side == "a" else "a"
            tensor = transposed(tensor) if side == "a" else tensor
        halves[canonical, side] = Half(tensor, name)
    # llama.cpp takes an alpha of zero for none: then the pair counts as it is.
    parts = paired(path, halves, lambda _, rank: alpha / rank if alpha else 1.0)
    return Adapter(NAME, path, parts, interleaved=True)


def _alpha(header: Header) -> float:
    alpha = header.metadata.get(_ALPHA, 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise header.error(_ALPHA, f"is {alpha!r}, not a number")
    return float(alpha)
