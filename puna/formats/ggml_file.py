"""The GGML container of 2023: numbers read forward, then tensor records back to back, to the end.

A record is u32 n_dims, u32 name length, u32 type, u32 ne[n_dims] (the shape reversed), the name,
padding to a multiple of 32 bytes of the file (from `ggjt` on), the data. Models and LoRA adapters
share it. Every count and length is held against the file's size before it is believed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from puna.formats.checkpoint import LazyTensor
from puna.formats.errors import FormatError
from puna.formats.files import DataFile
from puna.quantize.storage import STORAGE

ALIGNMENT = 32
# Tensor type ids of ggml.h in July 2023.
TYPE_IDS = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0",
    10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k",
}  # fmt: skip
_IDS = {name: number for number, name in TYPE_IDS.items()}
_MAX_NAME = 256  # bytes
_WINDOW = 1 << 16  # bytes read at once, so that many small numbers are few reads


class Cursor:
    """Reads forward through a file; past its end is a FormatError that names the field."""

    def __init__(self, file: DataFile) -> None:
        self.file, self.at = file, 0
        self._window, self._start = b"", 0

    @property
    def left(self) -> int:
        return self.file.size - self.at

    def error(self, field: str, problem: str, at: int | None = None) -> FormatError:
        return FormatError(self.file.path, field, self.at if at is None else at, problem)

    def skip(self, length: int, field: str) -> None:
        if length > self.left:
            raise self.error(field, f"takes {length} bytes of the {self.left} that are left")
        self.at += length

    def take(self, length: int, field: str) -> bytes:
        begin = self.at
        self.skip(length, field)
        if begin < self._start or self.at > self._start + len(self._window):
            end = max(self.at, min(begin + _WINDOW, self.file.size))
            self._window, self._start = self.file.read(begin, end, field).tobytes(), begin
        return self._window[begin - self._start : self.at - self._start]

    def numbers(self, layout: str, field: str) -> tuple[int, ...]:
        """Little-endian integers, in struct's letters."""
        layout = "<" + layout
        return struct.unpack(layout, self.take(struct.calcsize(layout), field))


@dataclass(frozen=True, slots=True)
class Record:
    """A tensor's place: its header at `at`, its data from `begin` on."""

    shape: tuple[int, ...]
    dtype: str
    at: int
    begin: int


def read_records(cursor: Cursor, *, padded: bool = True) -> Iterator[tuple[str, Record]]:
    """Every record up to the end of the file; FormatError for damage and for names seen before."""
    seen: set[str] = set()
    while cursor.left:
        at = cursor.at
        field = f"tensor record {len(seen)}"
        num_dims, name_length, type_id = cursor.numbers("3I", field)
        if num_dims not in (1, 2):
            raise cursor.error(field, f"has {num_dims} dimensions; 1 or 2 are possible", at)
        if not 0 < name_length <= _MAX_NAME:
            raise cursor.error(field, f"has a name of {name_length} bytes", at)
        shape = cursor.numbers(f"{num_dims}I", field)[::-1]
        try:
            name = cursor.take(name_length, field).decode()
        except UnicodeDecodeError:
            raise cursor.error(field, "has a name that is not UTF-8", at) from None
        if name in seen:
            raise cursor.error(name, "is in the file twice", at)
        if type_id not in TYPE_IDS:
            known = ", ".join(TYPE_IDS.values())
            raise cursor.error(name, f"is of unknown type {type_id}; known are {known}", at)
        kind = STORAGE[TYPE_IDS[type_id]]
        if 0 in shape or shape[-1] % kind.block_size:
            raise cursor.error(name, f"has the impossible shape {shape} for {kind.name}", at)
        if padded:
            cursor.skip(-cursor.at % ALIGNMENT, name)
        begin = cursor.at
        cursor.skip(kind.num_bytes(shape), name)
        seen.add(name)
        yield name, Record(shape, kind.name, at, begin)


def lazy(file: DataFile, name: str, record: Record) -> LazyTensor:
    """The tensor of a record, rows in the file's order."""
    stored = STORAGE[record.dtype].stored_shape(record.shape)
    end = record.begin + math.prod(stored)
    return LazyTensor(
        record.shape,
        record.dtype,
        lambda: file.read(record.begin, end, name).reshape(stored),
        place=(file.path, record.at),
        origin=(file.identity(record.begin, end),),
    )


def write_records(file: BinaryIO, tensors: Mapping[str, LazyTensor]) -> None:
    """Appends padded records, tensor by tensor; all types must be of `TYPE_IDS`."""
    for name, tensor in tensors.items():
        raw = name.encode()
        dims = tensor.shape[::-1]
        header = struct.pack("<3I", len(dims), len(raw), _IDS[tensor.dtype])
        file.write(header + struct.pack(f"<{len(dims)}I", *dims) + raw)
        file.write(bytes(-file.tell() % ALIGNMENT))
        file.write(np.ascontiguousarray(tensor.read()).data)
