"""Ways to damage a file: bytes, lengths, the integers where they stand, the JSON in it."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Place = tuple[int, int]  # offset and size of an integer

_NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62,
            (1 << 63) - 1, -(1 << 31), -(1 << 63))  # fmt: skip
_JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, -1e-9, 1e308, float("nan"), float("inf"), 1 << 31, 1 << 63,
    10**400, "", "x", "é" * 40, "../x", "\0", "\ud800", "F32", "I64", [], {}, [[]], [0], [1, 2],
    {"a": 1}, [0, 1 << 60], "x" * 5000, list(range(3000)),
)  # fmt: skip


def mutate(data: bytes, places: list[Place], generator: random.Random) -> bytes:
    """The file with one to three things about it changed."""
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        kinds = [*_BYTES] + [_integer] * 6 * bool(places)
        if data[:1] == b"{" or data[8:9] == b"{":
            kinds += [_json] * 8
        kind = generator.choice(kinds)
        data = kind(data, places, generator)
    return data


def _flip(data: bytes, places: list[Place], generator: random.Random) -> bytes:
    # Most of a file is weights, of which any bytes are good; what matters stands near its ends.
    at = _somewhere(data, generator)
    new = generator.choice(
        (bytes([generator.randrange(256)]), b"\xff" * 4, b"\xff" * 8, bytes(4), b"\xff\xff\xff\x7f")
    )
    return data[:at] + new + data[at + len(new) :]


def _truncate(data: bytes, places: list[Place], generator: random.Random) -> bytes:
    return data[: _somewhere(data, generator)]


def _extend(data: bytes, places: list[Place], generator: random.Random) -> bytes:
    more = generator.choice((b"\0", generator.randbytes(100), data[:2000], bytes(5000)))
    return data + more


def _cut(data: bytes, places: list[Place], generator: random.Random) -> bytes:
    at, length = _somewhere(data, generator), generator.choice((1, 4, 8, 60))
    return data[:at] + data[at + length :]


def _repeat(data: bytes, places: list[Place], generator: random.Random) -> bytes:
    at, length = _somewhere(data, generator), generator.choice((1, 8, 60, 500))
    return data[: at + length] + data[at:]


def _swap(data: bytes, places: list[Place], generator: random.Random) -> bytes:
    """Two pieces of the file exchanged: entries, keys, records."""
    length = generator.choice((4, 8, 24, 64))
    first, second = sorted(_somewhere(data, generator) for _ in range(2))
    if second < first + length:
        return data
    one, two = data[first : first + length], data[second : second + length]
    return data[:first] + two + data[first + length : second] + one + data[second + length :]


def _integer(data: bytes, places: list[Place], generator: random.Random) -> bytes:
    """An integer of the file replaced: by an edge, a size, a neighbour, another of the file's."""
    at, size = generator.choice(places)
    if at + size > len(data):
        return data
    own = int.from_bytes(data[at : at + size], "little")
    other_at, other_size = generator.choice(places)
    other = int.from_bytes(data[other_at : other_at + other_size], "little")
    values = (*_NUMBERS, own + 1, own - 1, 2 * own, own // 2, own + 32, other, len(data),
              len(data) - at, len(data) // 8)  # fmt: skip
    value = generator.choice(values) & ((1 << 8 * size) - 1)
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


_Mutation = Callable[[bytes, list[Place], random.Random], bytes]
_BYTES: tuple[_Mutation, ...] = (_flip, _flip, _flip, _truncate, _extend, _cut, _repeat, _swap)


def _somewhere(data: bytes, generator: random.Random) -> int:
    near = min(len(data), 12_000)
    places = (generator.randrange(near + 1), len(data) - generator.randrange(min(near, 3000) + 1))
    return generator.choice((*places, generator.randrange(len(data) + 1)))


def _json(data: bytes, places: list[Place], generator: random.Random) -> bytes:
    """A value, key or entry of a JSON file, or of safetensors' header, changed."""
    framed = data[:1] != b"{"
    length = int.from_bytes(data[:8], "little") if framed else len(data)
    begin = 8 if framed else 0
    try:
        root = json.loads(data[begin : begin + length])
        text = _changed(root, generator)
    except (ValueError, RecursionError):
        return data
    head = len(text).to_bytes(8, "little") if framed else b""
    return head + text + data[begin + length :]


def _changed(root: Any, generator: random.Random) -> bytes:
    node, inner = root, root
    while isinstance(inner, dict | list) and inner and generator.random() < 0.75:
        node = inner
        inner = node[generator.choice(_keys(node))]
    if not isinstance(node, dict | list) or not node:
        return json.dumps(generator.choice(_JSON_VALUES)).encode()
    keys = _keys(node)
    key, other = generator.choice(keys), generator.choice(keys)
    what = generator.randrange(6)
    if what == 0:
        del node[key]
    elif what == 1:
        node[key], node[other] = node[other], node[key]
    elif what == 2 and isinstance(node, dict):
        node["x" + key] = node.pop(key)
    elif what == 3 and isinstance(node, dict):
        name = json.dumps(key)
        return json.dumps(root).replace(f"{name}: ", f"{name}: 1, {name}: ", 1).encode()
    elif what == 4 and isinstance(node[key], int | float):
        node[key] = generator.choice((node[key] + 1, node[key] * 2, -node[key], node[other]))
    else:
        node[key] = generator.choice(_JSON_VALUES)
    return json.dumps(root).encode()


def _keys(node: Any) -> list[Any]:
    return list(node) if isinstance(node, dict) else list(range(len(node)))


def integer_places(name: str, data: bytes) -> list[Place]:
    """Where the integers stand of a file that is whole, by its name and magic."""
    if data[:4] == b"GGUF":
        return _gguf_places(data)
    if data[:4] in (b"tjgg", b"fmgg", b"lmgg"):
        return _ggml_places(data)
    if data[:4] == b"PK\3\4":
        return _zip_places(data)
    if data[:4] == b"24ka":
        return [(4 * index, 4) for index in range(9)] + [(36, 1), (37, 4)]
    if name == "model.bin":
        return [(4 * index, 4) for index in range(7)]
    if name == "tokenizer.bin":
        places = [(0, 4)]
        at = 4
        while at < len(data):
            places.append((at + 4, 4))
            at += 8 + struct.unpack_from("<i", data, at + 4)[0]
        return places
    return [(0, 8)] if name.endswith(".safetensors") else []


_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _gguf_places(data: bytes) -> list[Place]:
    places = [(4, 4), (8, 8), (16, 8)]
    pieces: list[Place] = []  # of which some are enough
    num_tensors, num_values = struct.unpack_from("<QQ", data, 8)
    at = 24

    def number(size: int) -> int:
        nonlocal at
        places.append((at, size))
        at += size
        return int.from_bytes(data[at - size : at], "little")

    def skip_text() -> None:
        nonlocal at
        length = number(8)
        at += length

    def value(kind: int) -> None:
        nonlocal at
        if kind == 8:
            skip_text()
        elif kind == 9:
            item, count = number(4), number(8)
            for _ in range(count if item == 8 else 0):
                pieces.append((at, 8))
                skip_text()
            at += 0 if item == 8 else count * _GGUF_SIZES[item]
        else:
            number(_GGUF_SIZES[kind])

    for _ in range(num_values):
        skip_text()
        value(number(4))
    for _ in range(num_tensors):
        skip_text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return [place for place in places if place not in pieces[20:]]


def _ggml_places(data: bytes) -> list[Place]:
    """The header of ggjt v3, the first lengths of its vocabulary, its tensors' records."""
    places = [(4 + 4 * index, 4) for index in range(8)]
    (num_pieces,) = struct.unpack_from("<I", data, 8)
    at = 36
    for index in range(num_pieces):
        if index < 30:
            places.append((at, 4))
        at += 8 + struct.unpack_from("<I", data, at)[0]
    places += [(at + 4 * index, 4) for index in range(5)]
    return places


def _zip_places(data: bytes) -> list[Place]:
    places = []
    for signature, fields in {
        b"PK\3\4": ((8, 2), (18, 4), (22, 4), (26, 2), (28, 2)),
        b"PK\1\2": ((10, 2), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)),
        b"PK\5\6": ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
        b"PK\6\6": ((24, 8), (32, 8), (40, 8), (48, 8)),
        b"PK\6\7": ((8, 8),),
    }.items():
        at = data.find(signature)
        while at >= 0:
            places += [(at + offset, size) for offset, size in fields]
            at = data.find(signature, at + 1)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        pickle = archive.read(name)
    begin = data.index(pickle)
    sizes = {"BININT": 4, "BININT1": 1, "BININT2": 2, "BINUNICODE": 4, "BINGET": 1}
    for opcode, _, position in pickletools.genops(pickle):
        if opcode.name in sizes and position is not None:
            places.append((begin + position + 1, sizes[opcode.name]))
    return places
