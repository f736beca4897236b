"""The safetensors container: u64 header length, JSON header, tensors back to back.

Read and written here rather than with the library, because its numpy side has no bf16 and its
writer wants every tensor in memory at once. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from puna.formats.checkpoint import LazyTensor
from puna.formats.files import map_file
from puna.quantize.storage import STORAGE, Bytes

_DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_NAMES = {ours: theirs for theirs, ours in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit


def read_safetensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Name -> lazy tensor, and the file's string metadata. Checks everything before use."""
    data = map_file(path)
    if len(data) < 8:
        raise ValueError(f"{path} is truncated: a safetensors file has at least 8 bytes")
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if header_bytes > min(_MAX_HEADER, len(data) - 8):
        raise ValueError(
            f"{path} is truncated or no safetensors file: its header claims {header_bytes} bytes "
            f"of a file of {len(data)}"
        )
    try:
        header = json.loads(data[8 : 8 + header_bytes].tobytes())
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        entries = list(header.items())
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} has a damaged safetensors header") from None
    body = data[8 + header_bytes :]
    tensors = {name: _entry(path, name, entry, body) for name, entry in entries}
    return tensors, metadata


def _entry(path: Path, name: str, entry: Any, body: Bytes) -> LazyTensor:
    try:
        dtype_name, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        whole = [begin, end, *shape]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: the entry of {name} is damaged") from None
    if not all(type(n) is int and n >= 0 for n in whole) or not shape or 0 in shape:
        raise ValueError(f"{path}: {name} has an impossible shape or place")
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise ValueError(f"{path}: {name} is {dtype_name}; known are {', '.join(_DTYPES)}")
    kind = STORAGE[_DTYPES[dtype_name]]
    if end > len(body):
        raise ValueError(f"{path} is truncated: {name} ends at {end} of {len(body)} bytes")
    if end - begin != kind.num_bytes(shape):
        raise ValueError(f"{path}: {name} has {end - begin} bytes, not {kind.num_bytes(shape)}")
    stored = kind.stored_shape(shape)
    return LazyTensor(shape, kind.name, lambda: body[begin:end].reshape(stored))


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]
) -> None:
    """Writes tensor by tensor: no more than one is in memory."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"safetensors cannot hold {name} as {tensor.dtype}; give --dtype f16")
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.num_bytes],
        }
        at += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(np.ascontiguousarray(tensor.read()).data)
