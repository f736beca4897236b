"""Importance matrices: the mean square of each column's input, as llama.cpp's `imatrix` writes it.

Read in both of its formats, GGUF (tensors `<name>.in_sum2` and `<name>.counts`) and the older
`.dat`; written as GGUF. https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from puna.formats.checkpoint import LazyTensor
from puna.formats.errors import FormatError
from puna.formats.files import DataFile, atomic_file
from puna.formats.gguf_file import MAGIC, read_gguf, write_gguf
from puna.formats.names import GGUF
from puna.quantize.storage import Floats

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_NAME = 1024


def read_importance(path: Path) -> dict[str, Floats]:
    """Canonical tensor name -> importance (row length,); FormatError for anything else.

    Names of tensors that no Llama has are an error too: the file belongs to another model.
    """
    data = DataFile(path)
    start = data.read(0, min(4, data.size), "magic").tobytes()
    foreign = _read_gguf(path) if start == MAGIC else _read_dat(data)
    importance = {}
    for name, values in foreign.items():
        canonical = GGUF.canonical(name)
        if canonical is None:
            raise FormatError(path, name, 0, "no tensor of a Llama has this name")
        if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
            raise FormatError(path, name, 0, "its importance is negative, not finite or all zero")
        importance[canonical] = values
    if not importance:
        raise FormatError(path, "entries", 0, "the importance matrix is empty")
    return importance


def write_importance(
    path: Path, importance: Mapping[str, Floats], num_tokens: int, *, overwrite: bool = False
) -> None:
    """Writes what `llama-quantize --imatrix` reads; `num_tokens` is how many were averaged."""
    tensors = {}
    for name, values in importance.items():
        foreign = GGUF.foreign(name)
        tensors[foreign + _SUMS] = _stored(values[None, :] * np.float32(num_tokens))
        tensors[foreign + _COUNTS] = _stored(np.full((1, 1), num_tokens, np.float32))
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": ["calibration"],
        "imatrix.chunk_count": 1,
        "imatrix.chunk_size": num_tokens,
    }
    with atomic_file(path, overwrite=overwrite) as file:
        write_gguf(file, metadata, tensors)


def _stored(values: Floats) -> LazyTensor:
    raw = np.ascontiguousarray(values, np.float32).view(np.uint8)
    return LazyTensor(values.shape, "f32", lambda: raw)


def _read_gguf(path: Path) -> dict[str, Floats]:
    metadata, tensors = read_gguf(path)
    if metadata.get("general.type") != "imatrix":
        raise FormatError(path, "general.type", 0, "this GGUF file is no importance matrix")
    out = {}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        base = name.removesuffix(_SUMS)
        counts = tensors.get(base + _COUNTS)
        if counts is None:
            raise FormatError(path, base, 0, f"{name} has no {_COUNTS} beside it")
        count = counts.read_float32().ravel()
        if len(count) != 1 or sums.dtype != "f32" or counts.dtype != "f32" or not count[0] > 0:
            raise FormatError(path, base, 0, "its sums or counts are not those of one f32 matrix")
        out[base] = sums.read_float32().ravel() / count[0]
    return out


def _read_dat(data: DataFile) -> dict[str, Floats]:
    """i32 entries, each: i32 length, name, i32 calls, i32 values, values times calls (f32)."""
    at = 0

    def number(field: str, low: int, high: int) -> int:
        nonlocal at
        value = int(data.read(at, at + 4, field).view("<i4")[0])
        if not low <= value <= high:
            raise FormatError(data.path, field, at, f"{value} is not plausible")
        at += 4
        return value

    out: dict[str, Floats] = {}
    for _ in range(number("number of entries", 1, data.size // 12)):
        length = number("length of a name", 1, _MAX_NAME)
        name = data.read(at, at + length, "name").tobytes().decode("utf-8", "replace")
        at += length
        calls = number(name, 0, 2**31 - 1)
        count = number(name, 1, data.size // 4)
        values = data.read(at, at + 4 * count, name).view("<f4").astype(np.float32)
        at += 4 * count
        if name in out:
            raise FormatError(data.path, name, at, "stands twice in the file")
        out[name] = values / np.float32(max(calls, 1))
    return out
