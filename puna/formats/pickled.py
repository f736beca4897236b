"""Torch's zip checkpoints (`.pth`, `.bin`), read and written without torch.

A zip of uncompressed records: `<folder>/data.pkl` is a pickle of the tensors' names, shapes and
storages, `<folder>/data/<key>` the bytes of one storage (torch/serialization.py).
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from puna.formats.checkpoint import LazyTensor
from puna.formats.errors import FormatError
from puna.formats.files import DataFile
from puna.formats.pickle_machine import MAX_PICKLE, STORAGES, Machine, Tensor
from puna.formats.stored import FLOAT_TYPES, Stored
from puna.formats.zip_records import Record, read_records
from puna.quantize.block_type import Bytes

_ALIGNMENT = 64  # bytes; what torch pads its records to
_MAX_DIMS = 8
_ZIP64_FROM = 1 << 30  # bytes; larger records get 64-bit sizes
_STORAGE_NAMES = {
    FLOAT_TYPES[kind.dtype]: name for name, kind in STORAGES.items() if kind.dtype in FLOAT_TYPES
}


def read_pickled(path: Path) -> dict[str, LazyTensor]:
    """Name -> lazy tensor of floats; FormatError as in `read_stored`, and for other types."""
    return {name: tensor.lazy() for name, tensor in read_stored(path).items()}


def read_stored(path: Path) -> dict[str, Stored]:
    """Name -> tensor; FormatError for damage, for code, for anything but a dict of tensors."""
    file = DataFile(path)
    start = file.read(0, min(4, file.size), "magic").tobytes()
    if start != b"PK\3\4":
        problem = "this is no torch checkpoint (not a zip), or it is damaged"
        if start[:1] == b"\x80":
            problem = "the format is torch's from before 1.6; load it with torch, save it again"
        raise FormatError(path, "magic", 0, problem)
    records = read_records(file)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        problem = "this is no torch checkpoint: its zip has no single data.pkl"
        raise FormatError(path, "data.pkl", 0, problem)
    folder, record = pickles[0].removesuffix("data.pkl"), records[pickles[0]]
    if record.end - record.begin > MAX_PICKLE:
        problem = f"{record.end - record.begin} bytes are not plausible"
        raise FormatError(path, "data.pkl", record.place, problem)
    order = records.get(folder + "byteorder")
    if order is not None:
        text = file.read(order.begin, min(order.end, order.begin + 8), "byteorder").tobytes()
        if text.strip() != b"little":
            problem = f"it is {text!r}; save the file again on a little-endian machine"
            raise FormatError(path, "byteorder", order.begin, problem)
    root = Machine(path, record.begin).run(file.read(record.begin, record.end).tobytes())
    if not isinstance(root, dict):
        problem = f"it holds one {type(root).__name__}, not a dict of tensors"
        raise FormatError(path, "data.pkl", record.begin, problem)
    tensors = {}
    for name, value in root.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            problem = f"it is of type {type(value).__name__}; a dict of tensors is expected"
            raise FormatError(path, str(name)[:80], record.begin, problem)
        tensors[name] = _stored(file, name, value, records.get(f"{folder}data/{value.storage.key}"))
    return tensors


def _stored(file: DataFile, name: str, tensor: Tensor, record: Record | None) -> Stored:
    """Checks a tensor against the record of its storage."""
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    size, place = storage.kind.item_bytes, (file.path, tensor.at)
    if not 0 < len(shape) <= _MAX_DIMS or 0 in shape:
        raise FormatError(file.path, name, tensor.at, f"it has the impossible shape {shape}")
    if record is None or size * storage.num_elements > record.end - record.begin:
        problem = f"the file lacks its {storage.num_elements} elements; truncated?"
        raise FormatError(file.path, name, tensor.at, problem)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # More elements than the storage has would be a repeated view, which no one saves.
    if last >= storage.num_elements or math.prod(shape) > storage.num_elements:
        raise FormatError(file.path, name, tensor.at, "it reaches outside its storage")
    begin, end = (record.begin + size * element for element in (tensor.offset, last + 1))
    origin = (file.identity(begin, end), f"strides {strides}")
    if _is_contiguous(shape, strides):
        read = partial(file.read, begin, end, name)
        return Stored(name, storage.kind.dtype, shape, place, read, origin)

    def read_view() -> Bytes:
        steps = (*(stride * size for stride in strides), 1)
        raw = file.read(begin, end, name)
        view = np.lib.stride_tricks.as_strided(raw, (*shape, size), steps, writeable=False)
        return np.ascontiguousarray(view).reshape(-1)

    return Stored(name, storage.kind.dtype, shape, place, read_view, origin)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the strides are C order; those of dimensions of size 1 do not count."""
    expected = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True


def write_pickled(file: BinaryIO, tensors: Mapping[str, LazyTensor]) -> None:
    """Writes a file that `torch.load(weights_only=True, mmap=True)` reads, tensor by tensor."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _STORAGE_NAMES:
            raise ValueError(f"a torch file cannot hold {name} as {tensor.dtype}; give --dtype f16")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        pickled = _pickle(tensors)
        _write_record(archive, file, "data.pkl", memoryview(pickled))
        _write_record(archive, file, "byteorder", memoryview(b"little"))
        for key, tensor in enumerate(tensors.values()):
            raw = np.ascontiguousarray(tensor.read()).reshape(-1)
            _write_record(archive, file, f"data/{key}", raw.data)
        _write_record(archive, file, "version", memoryview(b"3\n"))


def _write_record(
    archive: zipfile.ZipFile, file: BinaryIO, name: str, data: memoryview[Any]
) -> None:
    """One uncompressed record whose data starts at a multiple of 64 bytes."""
    info = zipfile.ZipInfo(f"archive/{name}")
    large = data.nbytes >= _ZIP64_FROM
    # Local header, name, and zip64's own extra field; then our padding field of 4 bytes and more.
    begin = file.tell() + 30 + len(info.filename) + 20 * large + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as record:
        record.write(data)


def _pickle(tensors: Mapping[str, LazyTensor]) -> bytes:
    """The opcodes (protocol 2) of {name: torch._utils._rebuild_tensor_v2(storage, ...)}."""
    out = bytearray(b"\x80\x02}(")  # PROTO 2, EMPTY_DICT, MARK
    for key, (name, tensor) in enumerate(tensors.items()):
        count = math.prod(tensor.shape)
        strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
        out += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += _text("storage") + f"ctorch\n{_STORAGE_NAMES[tensor.dtype]}\n".encode()
        out += _text(str(key)) + _text("cpu") + _integer(count) + b"tQ"  # TUPLE, BINPERSID
        out += _integer(0) + _tuple(tensor.shape) + _tuple(strides)
        # requires_grad False, no hooks; TUPLE, REDUCE
        out += b"\x89ccollections\nOrderedDict\n)RtR"
    return bytes(out + b"u.")  # SETITEMS, STOP


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(_integer(value) for value in values) + b"t"
