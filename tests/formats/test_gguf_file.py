"""The GGUF container: values of every type, and headers that lie, each refused where it lies."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest

from puna.formats.errors import FormatError
from puna.formats.gguf_file import TYPE_IDS, Strings, read_gguf, read_header
from puna.quantize.storage import STORAGE

KIND = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8,
        "array": 9, "u64": 10, "i64": 11, "f64": 12}  # fmt: skip


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: str, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", KIND[kind]) + value


def entry(name: str, shape: tuple[int, ...], offset: int, type_id: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return text(name) + dims + struct.pack("<IQ", type_id, offset)


def container(
    keys: list[bytes], entries: list[bytes], data: bytes, version: int = 3, alignment: int = 32
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(keys))
    head += b"".join([*keys, *entries])
    return head + bytes(-len(head) % alignment) + data


def save(path: Path, data: bytes) -> Path:
    (path / "a.gguf").write_bytes(data)
    return path / "a.gguf"


def test_every_kind_of_value(tmp_path: Path) -> None:
    writer = reference.GGUFWriter(tmp_path / "a.gguf", "x")
    values: dict[str, tuple[str, Any]] = {
        "a.u8": ("uint8", 255), "a.i8": ("int8", -128), "a.u16": ("uint16", 65535),
        "a.i16": ("int16", -5), "a.u32": ("uint32", (1 << 32) - 1), "a.i32": ("int32", -7),
        "a.u64": ("uint64", (1 << 64) - 1), "a.i64": ("int64", -(1 << 63)),
        "a.f32": ("float32", 1e-5), "a.f64": ("float64", 1 / 3), "a.bool": ("bool", True),
        "a.str": ("string", "naïve 🦙"), "a.ints": ("array", [1, -2, 3]),
        "a.floats": ("array", [0.5, 1.5]), "a.texts": ("array", ["a", "", "羊"]),
        "a.bools": ("array", [True, False]), "a.nested": ("array", [[1, 2], [3]]),
    }  # fmt: skip
    for name, (method, value) in values.items():
        getattr(writer, f"add_{method}")(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    header = read_header(tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    for name, (method, value) in values.items():
        read = header.metadata[name]
        if method != "array":
            assert (read, type(read)) == (value, type(value)), name
        elif isinstance(read, np.ndarray):
            assert read.tolist() == value and read.itemsize <= 4, name
        else:
            assert [x if isinstance(x, str) else x.tolist() for x in read] == value, name
        assert data[header.places[name] :].startswith(text(name)), name
    assert isinstance(header.metadata["a.texts"], Strings)


def test_the_types_are_ggmls() -> None:
    for number, name in TYPE_IDS.items():
        theirs = reference.GGMLQuantizationType(number)
        assert theirs.name.lower() == name
        assert reference.GGML_QUANT_SIZES[theirs] == (
            STORAGE[name].block_size,
            STORAGE[name].block_bytes,
        )
    assert set(TYPE_IDS.values()) == set(STORAGE)


@pytest.mark.parametrize("kind", list(reference.GGMLQuantizationType), ids=lambda kind: kind.name)
def test_other_types_are_named(tmp_path: Path, kind: Any) -> None:
    block, size = reference.GGML_QUANT_SIZES[kind]
    path = save(tmp_path, container([], [entry("x", (2, block), 0, kind)], bytes(2 * size)))
    if kind in TYPE_IDS:
        assert read_gguf(path)[1]["x"].read().shape == (2, size)
        return
    with pytest.raises(FormatError, match=rf"{kind.name} is not supported; supported are f32"):
        read_gguf(path)


NUMBER = key("a", "u32", struct.pack("<I", 1))


@pytest.mark.parametrize(
    ("data", "field", "offset", "problem"),
    [
        (b"GGML" + bytes(60), "magic", 0, "not a GGUF file"),
        (b"GGUF", "version", 4, "takes 4 bytes of the 0"),
        (container([], [], b"", version=1), "version", 4, "version 1 .* is not supported"),
        (container([], [], b"", version=4), "version", 4, "GGUF version 4; versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version", 4, "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensor count", 8, "not plausible"),
        (b"GGUF" + struct.pack("<IQQ", 3, 3, 0) + bytes(80), "tensor count", 8, "3 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "key count", 16, "not plausible"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5000) + bytes(70000), "key count", 16, "5000 keys"),
        (container([NUMBER, NUMBER], [], b""), "a", 24 + len(NUMBER), "twice"),
        (container([text(b"\xff") + bytes(8)], [], b""), "key 0", 32, "not UTF-8"),
        (container([struct.pack("<Q", 1 << 62) + bytes(9)], [], b""), "key 0", 24, "a string of"),
        (container([key("a", "str", text(b"ab\xff"))], [], b""), "a", 24 + 9 + 4 + 8 + 2, "UTF-8"),
        (container([text("a") + struct.pack("<I", 13)], [], b""), "a", 33, "unknown type 13"),
        (
            container([key("a", "array", struct.pack("<IQ", 4, 1 << 60))], [], bytes(64)),
            "a", 49, "takes 4611686018427387904 bytes of the",
        ),
        (
            container([key("a", "array", struct.pack("<IQ", 8, 1 << 60))], [], bytes(64)),
            "a", 37, "an array of 1152921504606846976 strings",
        ),
        (
            container([key("a", "array", struct.pack("<IQQ", 8, 1, 1 << 63))], [], bytes(64)),
            "a", 57, "takes 9223372036854775808 bytes",
        ),
        (
            container([key("a", "array", struct.pack("<IQ", 13, 1))], [], bytes(64)),
            "a", 37, "an array of unknown type 13",
        ),
        (
            container([key("a", "array", struct.pack("<IQ", 9, 1) * 30)], [], b""),
            "a", 37 + 8 * 12, "more arrays within arrays",
        ),
        (
            container([key("a", "array", struct.pack("<IQ", 9, 1 << 50))], [], b""),
            "a", 37, "more arrays within arrays",
        ),
        (container([], [entry("x", (4,), 0)] * 2, bytes(64)), "x", 24 + 33, "twice"),
        (container([], [entry("x", (1,) * 5, 0)], bytes(64)), "x", 24, "it has 5 dimensions"),
        (container([], [text("x") + bytes(32)], bytes(64)), "x", 24, "it has 0 dimensions"),
        (container([], [entry("x", (4,), 16)], bytes(64)), "x", 24, "no multiple of 32"),
        (container([], [entry("x", (4,), 64)], bytes(64)), "x", 24, "ends at byte 144 of 128"),
        (container([], [entry("x", (1 << 62, 1 << 62), 0)], bytes(64)), "x", 24, "truncated"),
        (container([], [entry("x", (0, 4), 0)], bytes(64)), "x", 24, "impossible shape"),
        (container([], [entry("x", (33,), 0, 8)], bytes(64)), "x", 24, "impossible shape"),
        (container([], [entry("x", (32,), 0, 99)], bytes(64)), "x", 24, "unknown type 99"),
        (
            container([], [entry("x", (16,), 0), entry("y", (4,), 32)], bytes(128)),
            "y", 57, "overlaps that of x",
        ),
        (
            container([], [entry("x", (4,), 32), entry("y", (16,), 0)], bytes(128)),
            "x", 24, "overlaps that of y",
        ),
    ],
)  # fmt: skip
def test_headers_that_lie(
    tmp_path: Path, data: bytes, field: str, offset: int, problem: str
) -> None:
    path = save(tmp_path, data)
    with pytest.raises(FormatError, match=problem) as caught:
        read_gguf(path)
    assert (caught.value.path, caught.value.field) == (path, field)
    assert caught.value.offset == offset


@pytest.mark.parametrize("alignment", [8, 16, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    keys = [key("general.alignment", "u32", struct.pack("<I", alignment))]
    entries = [entry("x", (4,), 0), entry("y", (4,), alignment * 2)]
    body = np.arange(4, dtype=np.float32).tobytes().ljust(2 * alignment, b"\0") + bytes(16)
    path = save(tmp_path, container(keys, entries, body, alignment=alignment))
    assert read_gguf(path)[1]["x"].read_float32().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "value"),
    [("u32", 0), ("u32", 4), ("u32", 24), ("u32", 33), ("i32", -8), ("u64", 1 << 63), ("bool", 1)],
)
def test_wrong_alignments(tmp_path: Path, kind: str, value: int) -> None:
    size = {"u32": 4, "i32": 4, "u64": 8, "bool": 1}[kind]
    raw = (value % (1 << 64)).to_bytes(8, "little")[:size]
    path = save(tmp_path, container([key("general.alignment", kind, raw)], [], bytes(64)))
    with pytest.raises(FormatError, match="no power of two from 8") as caught:
        read_header(path)
    assert (caught.value.field, caught.value.offset) == ("general.alignment", 24)


def test_strings_are_checked_when_they_are_read(tmp_path: Path) -> None:
    values = text("good") + text(b"b\xffd")
    path = save(
        tmp_path, container([key("a", "array", struct.pack("<IQ", 8, 2) + values)], [], b"")
    )
    strings = read_header(path).metadata["a"]
    assert len(strings) == 2 and next(iter(strings)) == "good"
    with pytest.raises(FormatError, match="not UTF-8") as caught:
        list(strings)
    assert caught.value.offset == path.read_bytes().index(b"\xff")
