"""The pickle in a torch checkpoint, stepped through opcode by opcode and never unpickled.

Only the opcodes that a dict of tensors needs are known, and only the globals of `_GLOBALS`, which
build descriptions of tensors: no pickle can run code, or make more objects than it is allowed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puna.formats.errors import FormatError, printable

MAX_PICKLE = 4_000_000  # bytes; Llama 2 70B's is about 100 kB
# Opcodes; a tensor takes about 35. What one makes takes many times its bytes.
_MAX_STEPS = 200_000


@dataclass(frozen=True, slots=True)
class StorageKind:
    """A torch storage class; `dtype` is safetensors' name of its type."""

    name: str
    dtype: str
    item_bytes: int


@dataclass(frozen=True, slots=True)
class Storage:
    kind: StorageKind
    key: str
    num_elements: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides count elements. `at` is where the pickle says so."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    at: int = 0


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> Tensor:
    if not (isinstance(storage, Storage) and isinstance(shape, tuple)):
        raise TypeError
    if not isinstance(strides, tuple) or len(shape) != len(strides):
        raise TypeError
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise TypeError
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


STORAGES = {
    kind.name: kind
    for kind in (
        StorageKind("FloatStorage", "F32", 4),
        StorageKind("HalfStorage", "F16", 2),
        StorageKind("BFloat16Storage", "BF16", 2),
        StorageKind("DoubleStorage", "F64", 8),
        StorageKind("LongStorage", "I64", 8),
        StorageKind("IntStorage", "I32", 4),
        StorageKind("ShortStorage", "I16", 2),
        StorageKind("CharStorage", "I8", 1),
        StorageKind("ByteStorage", "U8", 1),
        StorageKind("BoolStorage", "BOOL", 1),
    )
}
# Everything that a checkpoint's pickle may name.
_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): kind for name, kind in STORAGES.items()},
}


class Machine:
    """The stack machine of pickle. It calls nothing but the functions of `_GLOBALS`, and makes
    nothing but constants, tuples, lists, dicts and tensors' descriptions. `at` is the byte of the
    file where it is, `begin` where the pickle starts.
    """

    def __init__(self, path: Path, begin: int) -> None:
        self.path, self.begin, self.at = path, begin, begin
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def error(self, problem: str) -> FormatError:
        return FormatError(self.path, "data.pkl", self.at, problem)

    def run(self, data: bytes) -> Any:
        """What the pickle holds; FormatError for code, damage and all that tensors do not need."""
        try:
            for name, argument in self._opcodes(data):
                if name == "STOP":
                    break
                if name not in _STEPS:
                    raise self.error(
                        f"the pickle has {name}, which no dict of tensors needs; refused"
                    )
                _STEPS[name](self, argument)
            return self.stack.pop()
        except (IndexError, KeyError, TypeError):
            raise self.error("the pickle is damaged") from None

    def _opcodes(self, data: bytes) -> Iterator[tuple[str, Any]]:
        try:
            for step, (opcode, argument, position) in enumerate(pickletools.genops(data)):
                self.at = self.begin + (position or 0)
                if step == _MAX_STEPS:
                    raise self.error(f"more than {_MAX_STEPS} steps are not plausible")
                yield opcode.name, argument
        except FormatError:
            raise
        # The warning is pickletools' about an odd backslash, where warnings are errors.
        except (ValueError, DeprecationWarning):
            raise self.error("the pickle is damaged") from None

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
            raise self.error(f"the pickle would run code ({code}); refused")
        self.push(_GLOBALS[module, name])

    def load_storage(self) -> None:
        """The persistent id of a storage: ("storage", class, record key, device, elements)."""
        match self.stack.pop():
            case ("storage", StorageKind() as kind, str(key), str(), int(count)) if count >= 0:
                self.push(Storage(kind, key, count))
            case _:
                raise TypeError

    def call(self) -> None:
        function, arguments = self.pop(2)
        made = function(*arguments)
        self.push(replace(made, at=self.at) if isinstance(made, Tensor) else made)

    def set_items(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if len(items) % 2 or not isinstance(target, dict):
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # the hash of a deep tuple would overflow C's stack
                raise TypeError
            if key in target:
                raise self.error(f"the key {key!r} stands twice")
            target[key] = value

    def append(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)


_Step = Callable[[Machine, Any], object]
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
