"""Zip directories: against zipfile and torch, and with numbers that lie."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from puna.formats.errors import FormatError
from puna.formats.files import DataFile
from puna.formats.zip_records import read_records

CONTENTS = {"a/data.pkl": b"x" * 100, "a/data/0": bytes(range(200)), "a/ü": b""}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in CONTENTS.items():
            archive.writestr(name, data)
    return tmp_path / "a.zip"


def contents(path: Path) -> dict[str, bytes]:
    file = DataFile(path)
    records = read_records(file)
    return {name: file.read(r.begin, r.end).tobytes() for name, r in records.items()}


def test_reads_what_zipfile_writes(path: Path, tmp_path: Path) -> None:
    assert contents(path) == CONTENTS
    data = path.read_bytes()
    for record in read_records(DataFile(path)).values():
        assert data[record.place :].startswith(b"PK\1\2")
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"PK\5\6 and more"
        for name, content in CONTENTS.items():
            with archive.open(name, "w", force_zip64=True) as record:
                record.write(content)
    assert contents(path) == CONTENTS


def test_reads_what_torch_writes(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        expected = {name: archive.read(name) for name in archive.namelist()}
    assert contents(tmp_path / "a.pth") == expected


def test_numbers_of_64_bits(path: Path) -> None:
    """As they stand for a record or directory beyond 4 GB: all moved to the wide fields."""
    data = path.read_bytes()
    end = data.index(b"PK\5\6")
    count, _, begin = struct.unpack_from("<10xHII", data, end)
    central = b""
    at = begin
    for _ in range(count):
        entry = bytearray(data[at : at + 46])
        name_length = struct.unpack_from("<H", entry, 28)[0]
        packed, full = struct.unpack_from("<II", entry, 20)
        (local,) = struct.unpack_from("<I", entry, 42)
        extra = struct.pack("<HH2xHHQQQ", 9, 2, 1, 24, full, packed, local)
        struct.pack_into("<II", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
        struct.pack_into("<H", entry, 30, len(extra))
        struct.pack_into("<I", entry, 42, 0xFFFFFFFF)
        central += bytes(entry) + data[at + 46 : at + 46 + name_length] + extra
        at += 46 + name_length
    end64 = begin + len(central)
    wide = struct.pack(
        "<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(central), begin
    )
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end64, 1)
    last = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:begin] + central + wide + locator + last)
    with zipfile.ZipFile(path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == CONTENTS
    assert contents(path) == CONTENTS
    path.write_bytes(data[:begin] + central + wide + locator.replace(
        struct.pack("<Q", end64), struct.pack("<Q", 1 << 62)) + last)  # fmt: skip
    with pytest.raises(FormatError, match="said to stand at 4611686018427387904"):
        contents(path)


@pytest.mark.parametrize(
    ("entry", "at", "new", "field", "message"),
    [
        (0, 0, b"PK\1\3", "zip entry 0", "no entry of the zip's directory"),
        (1, 10, b"\x08\0", "a/data/0", "compressed"),
        (1, 20, b"\1\0\0\0", "a/data/0", "compressed"),
        (1, 42, b"\0\0\0\0", "a/data/0", "overlaps other data"),
        (1, 42, b"\1\0\0\0", "a/data/0", "no record starts at byte 1"),
        (1, 42, b"\xfe\xff\xff\xff", "a/data/0", "said to stand at byte 4294967294"),
        (1, 20, b"\x00\x01\0\0\x00\x01\0\0", "a/data/0", "overlaps other data"),
        (1, 20, b"\x00\x01\1\0\x00\x01\1\0", "a/data/0", "past the end"),
        (2, 28, b"\xff\xff", "zip entry 2", "after the zip's directory"),
        (1, 46, b"a/data.p", "a/data.p", ""),
    ],
)
def test_entries_that_lie(
    path: Path, entry: int, at: int, new: bytes, field: str, message: str
) -> None:
    data = bytearray(path.read_bytes())
    begin = -1
    for _ in range(entry + 1):
        begin = data.index(b"PK\1\2", begin + 1)
    data[begin + at : begin + at + len(new)] = new
    path.write_bytes(data)
    if not message:
        assert field in contents(path)
        return
    with pytest.raises(FormatError, match=message) as caught:
        contents(path)
    assert (caught.value.field, caught.value.offset) == (field, begin)


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"PK\5\7", "directory is not there"),
        (10, b"\xff\x7f", "32767 entries of"),
        (12, b"\xff\xff\0\0", "not plausible"),
        (16, b"\xff\xff\0\0", "not plausible"),
    ],
)
def test_ends_that_lie(path: Path, at: int, new: bytes, message: str) -> None:
    data = bytearray(path.read_bytes())
    end = data.index(b"PK\5\6")
    data[end + at : end + at + len(new)] = new
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        contents(path)
    assert caught.value.field == "zip directory"


def test_a_name_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/x", b"1")
        archive.writestr("a/y", b"2")
    data = (tmp_path / "a.zip").read_bytes().replace(b"a/y", b"a/x")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(FormatError, match="in the zip twice"):
        contents(tmp_path / "a.zip")
