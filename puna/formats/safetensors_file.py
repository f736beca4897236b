"""The safetensors container: u64 header length, JSON header, tensors back to back.

Read and written here rather than with the library, because its numpy side has no bf16 and its
writer wants every tensor in memory at once. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from puna.formats.checkpoint import LazyTensor
from puna.formats.errors import FormatError
from puna.formats.files import DataFile
from puna.formats.json_text import parse_object
from puna.formats.stored import FLOAT_TYPES, Stored
from puna.quantize.block_type import Bytes

_NAMES = {ours: theirs for theirs, ours in FLOAT_TYPES.items()}
# Bytes an element of all that a checkpoint's file may hold.
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
               "U8": 1, "BOOL": 1}  # fmt: skip
_MAX_DIMS = 8
_MAX_HEADER = 4_000_000  # bytes; Llama 2 70B's are about 100 kB


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as the header describes it; `begin` and `end` are bytes of the file.

    `dtype` is the file's name of it, `place` where its entry stands in the header.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    place: int


def read_entries(path: Path) -> tuple[DataFile, dict[str, Entry], dict[str, str]]:
    """The file, what its tensors are (of any type), and its string metadata.

    Raises FormatError unless the tensors fill all of the file after the header, none over another.
    """
    file = DataFile(path)
    header_bytes = int(file.read(0, 8, "header length").view("<u8")[0])
    if header_bytes > min(_MAX_HEADER, file.size - 8):
        raise FormatError(
            path, "header length", 0, f"{header_bytes} bytes, in a file of {file.size} bytes"
        )
    body = 8 + header_bytes
    header = parse_object(path, file.read(8, body, "header").tobytes(), "header", 8)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise header.error("__metadata__", "it is not an object")
    entries = {}
    for name, value in header.items():
        try:
            entries[name] = _entry(value, body, file.size, header.places[name])
        except ValueError as error:
            raise header.error(name, str(error)) from None
    at = body
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != at:
            problem = "overlaps another tensor" if entry.begin < at else "leaves a gap before it"
            raise header.error(name, f"its data (byte {entry.begin}) {problem}")
        at = entry.end
    if at != file.size:
        raise FormatError(path, "data", at, f"the tensors end here, the file at {file.size}")
    return file, entries, {str(key): str(value) for key, value in metadata.items()}


def read_safetensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Name -> lazy tensor, and the file's string metadata; FormatError as in `read_entries`."""
    file, entries, metadata = read_entries(path)
    tensors = {}
    for name, entry in entries.items():
        read = partial(file.read, entry.begin, entry.end, name)
        origin = (file.identity(entry.begin, entry.end),)
        stored = Stored(name, entry.dtype, entry.shape, (path, entry.place), read, origin)
        tensors[name] = stored.lazy()
    return tensors, metadata


def _entry(value: Any, body: int, size: int, place: int) -> Entry:
    try:
        dtype, shape = value["dtype"], tuple(value["shape"])
        begin, end = value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError("its entry is not a dtype, a shape and two data_offsets") from None
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"it is of type {dtype!r}; known are {', '.join(ITEM_BYTES)}")
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
        raise ValueError("its shape or data_offsets are not counts")
    if not 0 < len(shape) <= _MAX_DIMS or not 0 < min(shape) <= max(shape) <= size:
        raise ValueError(f"it has the impossible shape {shape}")
    if end > size - body:
        raise ValueError(f"its data ends at {end} of {size - body} bytes; truncated?")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise ValueError(f"it has {end - begin} bytes, its shape {shape} needs {expected}")
    return Entry(dtype, shape, body + begin, body + end, place)


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]
) -> None:
    """Writes tensor by tensor: no more than one is in memory."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"safetensors cannot hold {name} as {tensor.dtype}; give --dtype f16")
    specs = {name: (_NAMES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}
    write_arrays(file, specs, (tensor.read() for tensor in tensors.values()), metadata)


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: Any, /) -> Any: ...


def write_arrays(
    file: Sink,
    specs: Mapping[str, tuple[str, tuple[int, ...]]],
    arrays: Iterable[Bytes],
    metadata: Mapping[str, str],
) -> None:
    """Writes the bytes of `arrays`, one at a time; `specs` are their names, types and shapes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape) in specs.items():
        end = at + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        file.write(np.ascontiguousarray(array).data)
