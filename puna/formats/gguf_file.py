"""The GGUF container, versions 2 and 3: typed key-values, a tensor table, aligned data.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length is held against
the file's size before anything is allocated for it, and arrays stay as small as they are there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from puna.formats.checkpoint import LazyTensor
from puna.formats.errors import FormatError
from puna.formats.files import DataFile
from puna.formats.ggml_file import Cursor
from puna.formats.text import first_bad_byte
from puna.quantize.block_type import Bytes
from puna.quantize.storage import STORAGE

MAGIC = b"GGUF"
ALIGNMENT = 32

# Tensor type ids of ggml.h that Puna reads, and the names of others, for the error.
TYPE_IDS = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k",
    11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 30: "bf16",
}  # fmt: skip
_IDS = {name: number for number, name in TYPE_IDS.items()}
_OTHER_TYPES = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    34: "TQ1_0", 35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip

_STRING, _ARRAY, _BOOL, _F32, _U64 = 8, 9, 7, 6, 10
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"),
    4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("<u1"),
    10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
# What Python makes of an entry takes many times its bytes, so their number is limited too.
_MAX_KEYS = 4096
_MAX_TENSORS = 1 << 13
_MAX_TEXT = 1 << 20  # bytes of one string
_SHORT = 1 << 12
_MAX_NESTED = 1024  # arrays in arrays, of a whole file
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the tensor table, which stands at byte `place`; the data at `begin`."""

    shape: tuple[int, ...]
    type_id: int
    begin: int
    place: int


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the data. `places` is the byte of each key.

    Values are ints, floats, bools, strings, `Strings`, numpy arrays, and lists of arrays.
    """

    file: DataFile
    version: int
    metadata: dict[str, Any]
    places: dict[str, int]
    tensors: dict[str, Entry]

    def error(self, key: str, problem: str) -> FormatError:
        """What is wrong with a key, which may be missing, or with a tensor."""
        entry = self.tensors.get(key)
        place = self.places.get(key, entry.place if entry else 0)
        return FormatError(self.file.path, key, place, problem)


class Strings:
    """An array of strings that stay in the file until they are asked for, by iteration."""

    def __init__(self, file: DataFile, key: str, begin: int, count: int) -> None:
        self._file, self._key, self._begin, self._count = file, key, begin, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        cursor = Cursor(self._file)
        cursor.at = self._begin
        for _ in range(self._count):
            yield _string(cursor, self._key)


def read_header(path: Path) -> Header:
    """Parses everything but the data; FormatError for other versions or damage."""
    cursor = Cursor(DataFile(path))
    if cursor.take(4, "magic") != MAGIC:
        raise cursor.error("magic", "this is not a GGUF file", 0)
    (version,) = cursor.numbers("I", "version")
    if version not in (2, 3):
        raise cursor.error("version", _other_version(version), 4)
    (num_tensors,) = cursor.numbers("Q", "tensor count")
    # A key-value takes 13 bytes at least, a tensor's entry 32.
    if num_tensors > min(_MAX_TENSORS, cursor.left // 32):
        problem = f"{num_tensors} tensors are not plausible in {cursor.file.size} bytes"
        raise cursor.error("tensor count", problem, 8)
    (num_values,) = cursor.numbers("Q", "key count")
    if num_values > min(_MAX_KEYS, cursor.left // 13):
        problem = f"{num_values} keys are not plausible in {cursor.file.size} bytes"
        raise cursor.error("key count", problem, 16)
    header = Header(cursor.file, version, {}, {}, {})
    nested = [0]
    for number in range(num_values):
        place = cursor.at
        key = _string(cursor, f"key {number}")
        if key in header.metadata:
            raise cursor.error(key, "this key is in the file twice", place)
        header.places[key] = place
        (kind,) = cursor.numbers("I", key)
        header.metadata[key] = _value(cursor, key, kind, nested, 0)
    entries = _read_entries(cursor, num_tensors)
    alignment = header.metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment not in (1 << power for power in range(3, 21)):
        problem = f"{alignment!r} is no power of two from 8 to 1048576"
        raise header.error("general.alignment", problem)
    start = _up(cursor.at, alignment)
    for name, (shape, type_id, offset, place) in entries.items():
        if offset % alignment:
            problem = f"its offset {offset} is no multiple of {alignment}"
            raise cursor.error(name, problem, place)
        header.tensors[name] = Entry(shape, type_id, start + offset, place)
    return header


def _other_version(version: int) -> str:
    if version == 1:
        return "GGUF version 1 (August 2023) is not supported; convert the original weights again"
    if version in (1 << 24, 2 << 24, 3 << 24):
        return "the file is big-endian; convert it with gguf-convert-endian"
    return f"GGUF version {version}; versions 2 and 3 are supported"


def _string(cursor: Cursor, field: str) -> str:
    place = cursor.at
    (length,) = cursor.numbers("Q", field)
    if length > min(_MAX_TEXT, cursor.left):
        problem = f"a string of {length} bytes, with {cursor.left} left"
        raise cursor.error(field, problem, place)
    if length <= _SHORT:
        try:
            return cursor.take(length, field).decode()
        except UnicodeDecodeError as error:
            raise cursor.error(field, "it is not UTF-8", place + 8 + error.start) from None
    cursor.skip(length, field)
    raw = cursor.file.read(place + 8, cursor.at, field).data  # not by a window of that size
    bad = first_bad_byte(raw)
    if bad is not None:
        raise cursor.error(field, "it is not UTF-8", place + 8 + bad)
    return str(raw, "utf-8")


def _value(cursor: Cursor, key: str, kind: int, nested: list[int], depth: int) -> Any:
    if kind == _STRING:
        return _string(cursor, key)
    if kind == _ARRAY:
        return _array(cursor, key, nested, depth)
    if kind not in _SCALARS:
        raise cursor.error(key, f"its value is of unknown type {kind}", cursor.at - 4)
    dtype = _SCALARS[kind]
    number = np.frombuffer(cursor.take(dtype.itemsize, key), dtype)[0]
    if kind == _F32:
        return float(str(number))  # the decimal that was meant: 1e-05, not 9.99999974737875e-06
    return bool(number) if kind == _BOOL else number.item()


def _array(cursor: Cursor, key: str, nested: list[int], depth: int) -> Any:
    place = cursor.at
    kind, count = cursor.numbers("IQ", key)
    if kind in _SCALARS:
        begin, size = cursor.at, _SCALARS[kind].itemsize
        cursor.skip(count * size, key)
        values = cursor.file.read(begin, cursor.at, key).view(_SCALARS[kind])
        return values != 0 if kind == _BOOL else values
    if kind == _STRING:
        begin = cursor.at
        if count > cursor.left // 8:  # a string takes 8 bytes at least
            raise cursor.error(key, f"an array of {count} strings, with {cursor.left} left", place)
        for _ in range(count):
            cursor.skip(cursor.numbers("Q", key)[0], key)
        return Strings(cursor.file, key, begin, count)
    if kind != _ARRAY:
        raise cursor.error(key, f"an array of unknown type {kind}", place)
    nested[0] += count
    if nested[0] > _MAX_NESTED or depth >= _MAX_DEPTH:
        raise cursor.error(key, "more arrays within arrays than is plausible", place)
    return [_array(cursor, key, nested, depth + 1) for _ in range(count)]


def _read_entries(cursor: Cursor, count: int) -> dict[str, tuple[tuple[int, ...], int, int, int]]:
    """Name -> shape, type id, offset in the data, place of the entry."""
    entries: dict[str, tuple[tuple[int, ...], int, int, int]] = {}
    for number in range(count):
        place = cursor.at
        name = _string(cursor, f"tensor {number}")
        if name in entries:
            raise cursor.error(name, "this tensor is in the file twice", place)
        (num_dims,) = cursor.numbers("I", name)
        if not 1 <= num_dims <= 4:
            raise cursor.error(name, f"it has {num_dims} dimensions", place)
        shape = cursor.numbers(f"{num_dims}Q", name)[::-1]
        type_id, offset = cursor.numbers("IQ", name)
        entries[name] = (shape, type_id, offset, place)
    return entries


def read_tensors(header: Header) -> dict[str, LazyTensor]:
    """Name -> lazy tensor; FormatError unless each has room of its own in the file."""
    tensors = {name: _tensor(header, name, entry) for name, entry in header.tensors.items()}
    in_order = sorted(tensors, key=lambda name: header.tensors[name].begin)
    for name, following in pairwise(in_order):
        if header.tensors[following].begin < header.tensors[name].begin + tensors[name].num_bytes:
            raise header.error(following, f"its data overlaps that of {name}")
    return tensors


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Key-values, and name -> lazy tensor, in the file's own names and rotary layout."""
    header = read_header(path)
    return header.metadata, read_tensors(header)


def _tensor(header: Header, name: str, entry: Entry) -> LazyTensor:
    file = header.file
    if entry.type_id not in TYPE_IDS:
        other = _OTHER_TYPES.get(entry.type_id, f"unknown type {entry.type_id}")
        known = ", ".join(TYPE_IDS.values())
        raise header.error(name, f"{other} is not supported; supported are {known}")
    kind = STORAGE[TYPE_IDS[entry.type_id]]
    if 0 in entry.shape or entry.shape[-1] % kind.block_size:
        raise header.error(name, f"it has the impossible shape {entry.shape} for {kind.name}")
    end = entry.begin + kind.num_bytes(entry.shape)
    if end > file.size:
        problem = f"its data ends at byte {end} of {file.size}; the file is truncated or damaged"
        raise header.error(name, problem)
    stored = kind.stored_shape(entry.shape)

    def read() -> Bytes:
        return file.read(entry.begin, end, name).reshape(stored)

    origin = (file.identity(entry.begin, end),)
    return LazyTensor(entry.shape, kind.name, read, place=(file.path, entry.place), origin=origin)


def write_gguf(
    file: BinaryIO, metadata: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> None:
    """Writes version 3, tensor by tensor. Value types follow the Python types, ints as u32."""
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _text(key) + _typed(key, value)
    offset = 0
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        out += _text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", _IDS[tensor.dtype], offset)
        offset += _up(tensor.num_bytes, ALIGNMENT)
    file.write(out + bytes(_up(len(out), ALIGNMENT) - len(out)))
    for tensor in tensors.values():
        file.write(np.ascontiguousarray(tensor.read()).data)
        file.write(bytes(_up(tensor.num_bytes, ALIGNMENT) - tensor.num_bytes))


def _up(length: int, alignment: int) -> int:
    return math.ceil(length / alignment) * alignment


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(key: str, value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int() if 0 <= value < 1 << 32:
            return struct.pack("<II", 4, value)
        case int() if 0 <= value < 1 << 64:
            return struct.pack("<IQ", _U64, value)
        case float():
            return struct.pack("<If", _F32, value)
        case str():
            return struct.pack("<I", _STRING) + _text(value)
        case [str(), *_]:
            body = b"".join(_text(item) for item in value)
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + body
        case [int(), *_]:
            body = struct.pack(f"<{len(value)}i", *value)
            return struct.pack("<IIQ", _ARRAY, 5, len(value)) + body
        case [float(), *_]:
            body = struct.pack(f"<{len(value)}f", *value)
            return struct.pack("<IIQ", _ARRAY, _F32, len(value)) + body
    raise ValueError(f"GGUF cannot hold {key} = {value!r}")
