"""JSON that others wrote: checked before it is used, with the byte where each key stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from puna.formats.errors import FormatError
from puna.formats.files import DataFile
from puna.formats.text import first_bad_byte

_MAX_BYTES = 4_000_000
# Objects, lists and items: a Python object takes many times the bytes that name it.
_MAX_VALUES = 100_000
_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonObject(dict[str, Any]):
    """An object of a file; `places` is the byte where each of its own keys stands."""

    def __init__(self, path: Path, field: str) -> None:
        super().__init__()
        self.path, self.field = path, field
        self.places: dict[str, int] = {}

    def text(self, key: str) -> str:
        """The value of a key that may be missing or no text, then empty."""
        value = self.get(key)
        return value if isinstance(value, str) else ""

    def error(self, key: str, problem: str) -> FormatError:
        """What is wrong with the value of `key`, which may be missing."""
        return FormatError(self.path, key, self.places.get(key, 0), problem)


def read_json(path: Path) -> JsonObject:
    """The object that a file holds; FormatError for anything else."""
    file = DataFile(path)
    if file.size > _MAX_BYTES:
        problem = f"{file.size} bytes are not plausible for {path.name}"
        raise FormatError(path, "JSON", 0, problem)
    return parse_object(path, file.read(0, file.size, "JSON").tobytes(), "JSON")


def parse_object(path: Path, raw: bytes, field: str, begin: int = 0) -> JsonObject:
    """The JSON object that stands at byte `begin` of a file, where it is called `field`.

    Raises FormatError for other JSON, for none, and for a key that stands twice.
    """
    if sum(map(raw.count, (b"{", b"[", b","))) > _MAX_VALUES:
        raise FormatError(path, field, begin, "it holds more values than is plausible")
    bad = first_bad_byte(raw)
    if bad is not None:
        raise FormatError(path, field, begin + bad, "it is not UTF-8")
    text = raw.decode()
    found = JsonObject(path, field)
    scan = _Scan(text, begin)
    try:
        scan.read_into(found)
        if _SURROGATE.search(text):  # half a character, which no text may hold
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        problem = f"it is not valid JSON: {error.msg}"
        raise FormatError(path, field, scan.byte(error.pos), problem) from None
    except UnicodeEncodeError:
        raise FormatError(path, field, begin, "it holds half a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(
            path, field, scan.byte(scan.at), f"it is not valid JSON: {error}"
        ) from None
    return found


class _Scan:
    """Steps through the members of one object; `at` counts characters."""

    def __init__(self, text: str, begin: int) -> None:
        self.text, self.at = text, 0
        self._decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
        self._known = (0, begin)  # a character, and its byte

    def byte(self, at: int) -> int:
        """The byte of character `at`, counted from the last one asked for."""
        character, byte = self._known
        if at < character:
            return byte - len(self.text[at:character].encode())
        self._known = (at, byte + len(self.text[character:at].encode()))
        return self._known[1]

    def read_into(self, found: JsonObject) -> None:
        if self._next() != "{":
            raise json.JSONDecodeError("there is no object", self.text, self.at)
        self.at += 1
        while self._next() != "}" or found:
            if self._next() != '"':
                raise json.JSONDecodeError("a key is expected", self.text, self.at)
            place, start = self.byte(self.at), self.at
            key, self.at = self._decoder.raw_decode(self.text, self.at)
            if key in found:
                raise json.JSONDecodeError(f"the key {key!r} stands twice", self.text, start)
            self._expect(":")
            self._next()
            found[key], self.at = self._decoder.raw_decode(self.text, self.at)
            found.places[key] = place
            if self._next() == "}":
                break
            self._expect(",")
        self._expect("}")
        if self._next():
            raise json.JSONDecodeError("there is more after the object", self.text, self.at)

    def _next(self) -> str:
        """The next character that is no white space, empty at the end."""
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.text[self.at : self.at + 1]

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise json.JSONDecodeError(f"'{character}' is expected", self.text, self.at)
        self.at += 1


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return values
