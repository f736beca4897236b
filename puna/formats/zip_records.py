"""The records of an uncompressed zip, such as torch writes: where in the file each one's bytes are.

Read here rather than with zipfile, which says neither where a damaged zip is wrong nor stops at
what it would take memory for. APPNOTE.TXT of PKWARE, sections 4.3 and 4.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from puna.formats.errors import FormatError
from puna.formats.files import DataFile

_LOCAL, _CENTRAL, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64, _LOCATOR64 = b"PK\6\6", b"PK\6\7"
_MAX_TAIL = 22 + (1 << 16)  # bytes of the end record and its comment
_MAX_RECORDS = 1 << 14
_IN_EXTRA = 0xFFFFFFFF  # a number that stands, as 64 bits, in the extra field


@dataclass(frozen=True, slots=True)
class Record:
    """The bytes [begin, end) of the file; its entry in the directory stands at `place`."""

    begin: int
    end: int
    place: int


def read_records(file: DataFile) -> dict[str, Record]:
    """Name -> record; FormatError for damage, compression, and records that overlap."""
    begin, end, count = _directory(file)
    raw = file.read(begin, end, "zip directory").tobytes()
    records: dict[str, Record] = {}
    at = 0
    for number in range(count):
        field, place = f"zip entry {number}", begin + at
        if raw[at : at + 4] != _CENTRAL or len(raw) - at < 46:
            raise FormatError(file.path, field, place, "there is no entry of the zip's directory")
        method, packed, size, *lengths, local = struct.unpack_from("<10xH8xII3H8xI", raw, at)
        name_end = at + 46 + lengths[0]
        extra_end = name_end + lengths[1]
        name = raw[at + 46 : name_end].decode(errors="replace")
        extra = raw[name_end:extra_end]
        at = extra_end + lengths[2]
        if at > len(raw):
            raise FormatError(file.path, field, place, "it ends after the zip's directory")
        if name in records:
            raise FormatError(file.path, name, place, "this record is in the zip twice")
        size, packed, local = _in_full((size, packed, local), extra)
        if method != 0 or packed != size:
            raise FormatError(file.path, name, place, "it is compressed, which torch never does")
        records[name] = _record(file, name, place, local, size)
    last = 0
    for name, record in sorted(records.items(), key=lambda item: (item[1].begin, item[1].end)):
        if record.begin < last or record.end > begin:
            raise FormatError(file.path, name, record.place, "its data overlaps other data")
        last = record.end
    return records


def _directory(file: DataFile) -> tuple[int, int, int]:
    """Begin, end and number of entries of the directory."""
    tail_at = max(0, file.size - _MAX_TAIL)
    tail = file.read(tail_at, file.size, "zip directory").tobytes()
    found = tail.rfind(_END, 0, max(0, len(tail) - 22 + len(_END)))
    if found < 0:
        problem = "the zip's directory is not there; the file is truncated or damaged"
        raise FormatError(file.path, "zip directory", file.size, problem)
    end_at = tail_at + found
    count, size, begin = struct.unpack_from("<10xHII", tail, found)
    locator = file.read(max(0, end_at - 20), end_at, "zip directory").tobytes()
    if locator.startswith(_LOCATOR64):
        (at,) = struct.unpack_from("<8xQ", locator)
        if at > end_at - 56:
            problem = f"its 64-bit directory is said to stand at {at}"
            raise FormatError(file.path, "zip directory", end_at - 20, problem)
        end64 = file.read(at, at + 56, "zip directory").tobytes()
        if not end64.startswith(_END64):
            raise FormatError(file.path, "zip directory", at, "its 64-bit directory is not there")
        count, size, begin = struct.unpack_from("<32xQQQ", end64)
    if begin + size > end_at or count > min(_MAX_RECORDS, size // 46):
        problem = f"{count} entries of {size} bytes from byte {begin} are not plausible"
        raise FormatError(file.path, "zip directory", end_at, problem)
    return begin, begin + size, count


def _in_full(numbers: tuple[int, int, int], extra: bytes) -> tuple[int, ...]:
    """The numbers of an entry, those of 64 bits taken from its extra field."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    full = []
    for number in numbers:
        if number == _IN_EXTRA and len(wide) >= 8:
            number, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        full.append(number)
    return tuple(full)


def _record(file: DataFile, name: str, place: int, local: int, size: int) -> Record:
    if local + 30 > file.size:
        raise FormatError(file.path, name, place, f"it is said to stand at byte {local}")
    header = file.read(local, local + 30, name).tobytes()
    if not header.startswith(_LOCAL):
        raise FormatError(file.path, name, place, f"no record starts at byte {local}")
    # The local header's name and extra field may differ in length from the directory's.
    begin = local + 30 + sum(struct.unpack_from("<HH", header, 26))
    if begin + size > file.size:
        raise FormatError(file.path, name, place, f"its {size} bytes end past the end of the file")
    return Record(begin, begin + size, place)
