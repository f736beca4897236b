"""Torch's zip checkpoints (`.pth`, `.bin`), read and written without torch.

A zip of uncompressed records: `<folder>/data.pkl` is a pickle of the tensors' names, shapes and
storages, `<folder>/data/<key>` the bytes of one storage (torch/serialization.py). The pickle is
never unpickled: its opcodes are stepped through here, and only those that a dict of tensors needs.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from puna.formats.checkpoint import LazyTensor
from puna.formats.errors import printable
from puna.formats.files import map_file
from puna.quantize.storage import STORAGE, Bytes

_ALIGNMENT = 64  # bytes; what torch pads its records to
_MAX_PICKLE = 8_000_000  # bytes; Llama 2 70B's is about 100 kB
_MAX_DIMS = 8
_ZIP64_FROM = 1 << 30  # bytes; larger records get 64-bit sizes
# What zipfile raises for numbers that make no sense.
_ZIP_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, ValueError, struct.error
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _StorageKind:
    """A torch storage class; `dtype` is None for those that Puna cannot read."""

    name: str
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class _Storage:
    kind: _StorageKind
    key: str
    num_elements: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    if not (isinstance(storage, _Storage) and isinstance(shape, tuple)):
        raise TypeError
    if not isinstance(strides, tuple) or len(shape) != len(strides):
        raise TypeError
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise TypeError
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_DTYPES = {"FloatStorage": "f32", "HalfStorage": "f16", "BFloat16Storage": "bf16"}
_STORAGE_NAMES = {ours: theirs for theirs, ours in _DTYPES.items()}
_OTHER_STORAGES = [
    "DoubleStorage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
]
# Everything that a checkpoint's pickle may name.
_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageKind(name, dtype) for name, dtype in _DTYPES.items()},
    **{("torch", name): _StorageKind(name) for name in _OTHER_STORAGES},
}


def read_pickled(path: Path) -> dict[str, LazyTensor]:
    """Name -> lazy tensor; ValueError for damage, for code, for anything but a dict of tensors."""
    data = map_file(path)
    records = _records(path, data)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError(f"{path} is no torch checkpoint: its zip has no single data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    pickled = records[pickles[0]]
    if len(pickled) > _MAX_PICKLE:
        raise ValueError(f"{path} has a data.pkl of {len(pickled)} bytes, which is not plausible")
    byteorder = records.get(folder + "byteorder")
    if byteorder is not None and byteorder[:8].tobytes().strip() != b"little":
        raise ValueError(f"{path} is big-endian; save it again on a little-endian machine")
    root = _Machine(path).run(pickled.tobytes())
    if not isinstance(root, dict):
        raise ValueError(f"{path} holds one {type(root).__name__}, not a dict of tensors")
    tensors = {}
    for name, value in root.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            kind = type(value).__name__.lstrip("_")
            raise ValueError(
                f"{path} is not a dict of tensors: {str(name)[:80]!r} is of type {kind}"
            )
        tensors[name] = _lazy(f"{path}: {printable(name)}", value, records, folder)
    return tensors


def _records(path: Path, data: Bytes) -> dict[str, Bytes]:
    """Name -> bytes of each record of the zip, mapped."""
    start = data[:4].tobytes()
    if start != b"PK\3\4":
        if start[:1] == b"\x80":
            raise ValueError(
                f"{path} is in torch's format from before 1.6; load it with torch and save it again"
            )
        raise ValueError(f"{path} is no torch checkpoint (not a zip), or is damaged")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        return {info.filename: _record(data, info) for info in infos}
    except _ZIP_ERRORS as error:
        raise ValueError(f"{path} is truncated or a damaged zip: {error}") from None


def _record(data: Bytes, info: zipfile.ZipInfo) -> Bytes:
    name = info.filename[:80]
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise zipfile.BadZipFile(f"{name!r} is compressed, which torch never does")
    header = data[info.header_offset : info.header_offset + 30].tobytes()
    if info.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"no record where {name!r} should start")
    # The local header's name and extra field may differ in length from the directory's.
    begin = info.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
    if info.file_size > len(data) - begin:
        raise zipfile.BadZipFile(f"{name!r} ends past the end of the file")
    return data[begin : begin + info.file_size]


def _lazy(where: str, tensor: _Tensor, records: dict[str, Bytes], folder: str) -> LazyTensor:
    """Checks a tensor against its storage; `where` names it in errors."""
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    if storage.kind.dtype is None:
        raise ValueError(f"{where} is a {storage.kind.name}; known are {', '.join(_DTYPES)}")
    if not 0 < len(shape) <= _MAX_DIMS or 0 in shape:
        raise ValueError(f"{where} has the impossible shape {str(shape)[:80]}")
    size = STORAGE[storage.kind.dtype].block_bytes
    raw = records.get(f"{folder}data/{storage.key}")
    if raw is None or storage.num_elements > len(raw) // size:
        raise ValueError(f"{where} lacks its {storage.num_elements} elements; truncated?")
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # More elements than the storage has would be a repeated view, which no one saves.
    if last >= storage.num_elements or math.prod(shape) > storage.num_elements:
        raise ValueError(f"{where} reaches outside its storage; the file is damaged")
    begin = tensor.offset * size
    stored = (*shape[:-1], shape[-1] * size)
    if _is_contiguous(shape, strides):
        end = begin + math.prod(stored)
        return LazyTensor(shape, storage.kind.dtype, lambda: raw[begin:end].reshape(stored))

    def read() -> Bytes:
        steps = (*(stride * size for stride in strides), 1)
        view = np.lib.stride_tricks.as_strided(raw[begin:], (*shape, size), steps, writeable=False)
        return np.ascontiguousarray(view).reshape(stored)

    return LazyTensor(shape, storage.kind.dtype, read)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the strides are C order; those of dimensions of size 1 do not count."""
    expected = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True


class _Machine:
    """The stack machine of pickle, with the few opcodes that a dict of tensors needs.

    It calls nothing but the functions of `_GLOBALS`, and makes nothing but constants, tuples,
    lists, dicts and `_Tensor`s, so no pickle can run code or take more memory than its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        try:
            for name, argument in self._opcodes(data):
                if name == "STOP":
                    break
                if name not in _STEPS:
                    raise ValueError(
                        f"{self.path} is a pickle with {name}, which no dict of tensors needs; "
                        "refused"
                    )
                _STEPS[name](self, argument)
            return self.stack.pop()
        except (IndexError, KeyError, TypeError):
            raise ValueError(f"{self.path} has a damaged data.pkl") from None

    def _opcodes(self, data: bytes) -> Iterator[tuple[str, Any]]:
        try:
            for opcode, argument, _ in pickletools.genops(data):
                yield opcode.name, argument
        # The warning is pickletools' about an odd backslash, where warnings are errors.
        except (ValueError, DeprecationWarning):
            raise ValueError(f"{self.path} has a damaged data.pkl") from None

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def remember(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]

    def pop(self, count: int) -> tuple[Any, ...]:
        """The last `count` values, in order."""
        if count > len(self.stack):
            raise IndexError
        return tuple(self.stack.pop() for _ in range(count))[::-1]

    def pop_mark(self) -> tuple[Any, ...]:
        return self.pop(len(self.stack) - self.marks.pop())

    def load_global(self, module: str, name: str) -> None:
        if (module, name) not in _GLOBALS:
            code = printable(f"{module}.{name}")
            raise ValueError(f"{self.path} is a pickle that would run code ({code}); refused")
        self.push(_GLOBALS[module, name])

    def load_storage(self) -> None:
        """The persistent id of a storage: ("storage", class, record key, device, elements)."""
        match self.stack.pop():
            case ("storage", _StorageKind() as kind, str(key), str(), int(count)) if count >= 0:
                self.push(_Storage(kind, key, count))
            case _:
                raise TypeError

    def call(self) -> None:
        function, arguments = self.pop(2)
        self.push(function(*arguments))

    def set_items(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if len(items) % 2 or not isinstance(target, dict):
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # the hash of a deep tuple would overflow C's stack
                raise TypeError
            target[key] = value

    def append(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)


_Step = Callable[[_Machine, Any], object]
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    **dict.fromkeys(_VALUES, lambda m, value: m.push(value)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, slot: m.remember(slot)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, slot: m.push(m.memo[slot])),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.push(m.pop(1)),
    "TUPLE2": lambda m, _: m.push(m.pop(2)),
    "TUPLE3": lambda m, _: m.push(m.pop(3)),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "TUPLE": lambda m, _: m.push(m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "APPEND": lambda m, _: m.append(m.pop(1)),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "GLOBAL": lambda m, argument: m.load_global(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.load_global(*m.pop(2)),
    "BINPERSID": lambda m, _: m.load_storage(),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.pop(1),  # attributes such as a state dict's `_metadata`
}


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
