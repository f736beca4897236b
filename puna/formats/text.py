"""Text from a file: whether it is UTF-8, told before memory is taken for what is none."""

from __future__ import annotations

import codecs

_CHUNK = 1 << 13  # bytes; of a long text, Python would take four bytes for each at once


def first_bad_byte(raw: bytes | memoryview) -> int | None:
    """Where `raw` stops being UTF-8; None if all of it is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin in range(0, len(raw), _CHUNK):
        pending = len(decoder.getstate()[0])
        chunk = raw[begin : begin + _CHUNK]
        try:
            decoder.decode(chunk, final=begin + _CHUNK >= len(raw))
        except UnicodeDecodeError as error:
            return begin - pending + error.start
    return None
