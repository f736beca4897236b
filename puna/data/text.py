"""Documents out of text files: `.txt`, `.jsonl` (field `text`), either also as `.zst` or `.gz`."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def documents(path: Path, *, separator: str | None = None) -> Iterator[str]:
    """The documents of one file, in order; empty ones are left out.

    A text file is one document, or several where lines equal `separator`. Raises ValueError for a
    missing file, an unknown kind, text that is not UTF-8 or has NUL characters (it is binary, or
    of another encoding), and JSON that is damaged, with the line or document.
    """
    kind = path.name.removesuffix(".zst").removesuffix(".gz").rpartition(".")[2]
    if kind == "jsonl":
        found = _text_fields(path)
    elif kind == "txt":
        found = text_documents(path, separator)
    else:
        raise ValueError(
            f"{path}: unknown kind of text file; known are .txt and .jsonl (and .zst, .gz)"
        )
    return (document for document in _checked(found, path) if document.strip())


def _checked(found: Iterator[str], path: Path) -> Iterator[str]:
    for number, document in enumerate(found, start=1):
        if "\0" in document:
            raise ValueError(
                f"{path}, document {number}: a NUL character, as in no text; it is binary, or not "
                "UTF-8"
            )
        yield document


def records(path: Path) -> Iterator[Any]:
    """The JSON values of a `.jsonl` file, also `.zst` or `.gz`, one a line."""
    return (record for _, record in numbered_records(path))


def numbered_records(path: Path) -> Iterator[tuple[int, Any]]:
    """The same, each with the number of its line."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{path}, line {number}: not valid JSON") from None


def is_broken(text: str) -> bool:
    """Whether there is half of a surrogate pair, as JSON can say."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _text_fields(path: Path) -> Iterator[str]:
    for number, record in enumerate(records(path), start=1):
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"{path}, record {number}: no field 'text' with a string")
        yield text


def text_documents(path: Path, separator: str | None) -> Iterator[str]:
    """The documents of a text file, empty ones too: one, or several parted by `separator`."""
    document: list[str] = []
    for line in _lines(path):
        if separator is not None and line.strip() == separator:
            yield "".join(document).strip("\n")
            document = []
        else:
            document.append(line)
    yield "".join(document).strip("\n") if separator is not None else "".join(document)


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as file:
        number = 0
        while line := _readline(file, path, number):
            number += 1
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at "
                    f"{error.start}); convert the file first"
                ) from None


def _readline(file: BinaryIO, path: Path, number: int) -> bytes:
    try:
        return file.readline()
    except gzip.BadGzipFile as error:
        raise ValueError(f"{path} is damaged after line {number}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # zstandard has its own kind, known only where it is installed
        raise ValueError(f"{path} is damaged after line {number}: {error}") from None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if not path.is_file():
        raise ValueError(f"no such text file: {path}")
    with open(path, "rb") as raw:
        if path.suffix == ".zst":
            yield io.BufferedReader(_Decompressed(raw, path), buffer_size=1 << 20)
        elif path.suffix == ".gz":
            with gzip.GzipFile(fileobj=raw) as unzipped:
                yield io.BufferedReader(unzipped, buffer_size=1 << 20)
        else:
            yield raw


class _Decompressed(io.RawIOBase):
    """A zstd file's content; the library's own reader takes one that was cut off for whole."""

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise ValueError(f"{path} needs zstandard: pip install 'puna[train]'") from None
        self._raw = raw
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None  # None between frames
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._raw.read(1 << 16)
            if not self._input:
                if self._frame is not None:
                    raise ValueError("the file ends inside a zstd frame")
                return 0
            self._frame = self._frame or self._new_frame()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count
