"""The GGUF container, versions 2 and 3: typed key-values, a tensor table, aligned data.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length is held against
the file's size before anything is allocated for it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from puna.formats.checkpoint import LazyTensor
from puna.formats.files import map_file
from puna.quantize.storage import STORAGE, Bytes

MAGIC = b"GGUF"
ALIGNMENT = 32

# Tensor type ids of ggml.h that Puna reads, and the names of others, for the error.
TYPE_IDS = {0: "f32", 1: "f16", 8: "q8_0", 30: "bf16"}
_IDS = {name: number for number, name in TYPE_IDS.items()}
_OTHER_TYPES = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"),
    4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("?"),
    10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What stands before the data: key-values and, per tensor, (shape, type id, offset)."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, int]]
    data_start: int


class _Cursor:
    """Reads forward through a mapped file and never past its end."""

    def __init__(self, data: NDArray[np.uint8], path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, length: int) -> NDArray[np.uint8]:
        if length > len(self.data) - self.at:
            raise ValueError(f"{self.path} is truncated or damaged at byte {self.at}")
        self.at += length
        return self.data[self.at - length : self.at]

    def scalar(self, kind: int) -> Any:
        dtype = _SCALARS[kind]
        return self.take(dtype.itemsize).view(dtype)[0].item()

    def string(self) -> str:
        raw = self.take(self.scalar(10)).tobytes()
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} holds text that is not UTF-8: {raw[:40]!r}") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item_kind, count = self.scalar(4), self.scalar(10)
            if item_kind == _STRING:
                # A string takes 8 bytes at least.
                if count > (len(self.data) - self.at) // 8:
                    raise ValueError(f"{self.path} claims an array of {count} strings")
                return [self.string() for _ in range(count)]
            if item_kind in _SCALARS:
                dtype = _SCALARS[item_kind]
                return self.take(count * dtype.itemsize).view(dtype).tolist()
            raise ValueError(f"{self.path} holds an array of unknown type {item_kind}")
        if kind not in _SCALARS:
            raise ValueError(f"{self.path} holds a value of unknown type {kind}")
        return self.scalar(kind)


def read_header(path: Path) -> Header:
    """Parses everything but the data; ValueError for other versions or damage."""
    return _read_header(_Cursor(map_file(path), path))


def _read_header(cursor: _Cursor) -> Header:
    path = cursor.path
    if cursor.take(4).tobytes() != MAGIC:
        raise ValueError(f"{path} is not a GGUF file")
    version = cursor.scalar(4)
    if version not in (2, 3):
        raise ValueError(f"{path} is GGUF version {version}; versions 2 and 3 are supported")
    num_tensors, num_values = cursor.scalar(10), cursor.scalar(10)
    # A key-value takes 13 bytes at least, a tensor's entry 32.
    if num_values * 13 + num_tensors * 32 > len(cursor.data):
        raise ValueError(
            f"{path} is truncated or damaged: {len(cursor.data)} bytes cannot hold "
            f"{num_tensors} tensors and {num_values} keys"
        )
    metadata = {}
    for _ in range(num_values):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar(4))
    tensors = {}
    for _ in range(num_tensors):
        name = cursor.string()
        num_dims = cursor.scalar(4)
        if not 1 <= num_dims <= 4:
            raise ValueError(f"{path}: {name} has {num_dims} dimensions")
        shape = tuple(cursor.scalar(10) for _ in range(num_dims))[::-1]
        type_id, offset = cursor.scalar(4), cursor.scalar(10)
        tensors[name] = (shape, type_id, offset)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment > 1 << 20:
        raise ValueError(f"{path} has an impossible alignment: {alignment!r}")
    return Header(version, metadata, tensors, -(-cursor.at // alignment) * alignment)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Key-values, and name -> lazy tensor, in the file's own names and rotary layout."""
    data = map_file(path)
    header = _read_header(_Cursor(data, path))
    body = data[header.data_start :]
    tensors = {name: _tensor(path, name, entry, body) for name, entry in header.tensors.items()}
    return header.metadata, tensors


def _tensor(
    path: Path, name: str, entry: tuple[tuple[int, ...], int, int], body: Bytes
) -> LazyTensor:
    shape, type_id, offset = entry
    if type_id not in TYPE_IDS:
        known = ", ".join(TYPE_IDS.values())
        other = _OTHER_TYPES.get(type_id, f"of unknown type {type_id}")
        raise ValueError(f"{path}: {name} is {other}; supported are {known}")
    kind = STORAGE[TYPE_IDS[type_id]]
    if 0 in shape or shape[-1] % kind.block_size:
        raise ValueError(f"{path}: {name} has the impossible shape {shape} for {kind.name}")
    end = offset + kind.num_bytes(shape)
    if end > len(body):
        raise ValueError(f"{path} is truncated: {name} ends at {end} of {len(body)} data bytes")
    stored = kind.stored_shape(shape)
    return LazyTensor(shape, kind.name, lambda: body[offset:end].reshape(stored))


def write_gguf(
    file: BinaryIO, metadata: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> None:
    """Writes version 3, tensor by tensor. Value types follow the Python types, ints as u32."""
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key) + _value(value)
    offset = 0
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        out += _string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", _IDS[tensor.dtype], offset)
        offset += _padded(tensor.num_bytes)
    file.write(out + bytes(_padded(len(out)) - len(out)))
    for tensor in tensors.values():
        file.write(np.ascontiguousarray(tensor.read()).data)
        file.write(bytes(_padded(tensor.num_bytes) - tensor.num_bytes))


def _padded(length: int) -> int:
    return math.ceil(length / ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case [str(), *_]:
            body = b"".join(_string(item) for item in value)
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + body
        case [int(), *_]:
            body = struct.pack(f"<{len(value)}i", *value)
            return struct.pack("<IIQ", _ARRAY, 5, len(value)) + body
        case [float(), *_]:
            body = struct.pack(f"<{len(value)}f", *value)
            return struct.pack("<IIQ", _ARRAY, 6, len(value)) + body
    raise TypeError(f"GGUF cannot hold {value!r}")
