"""What is said of a file that cannot be read."""

from __future__ import annotations

from pathlib import Path

_MAX_SHOWN = 1000  # characters; a damaged length can make a name of a whole file


class FormatError(ValueError):
    """A damaged or unsupported file: one line that says which, where in it, and what is wrong.

    `field` is the tensor, key or part of the file, `offset` the byte where it stands.
    """

    def __init__(self, path: Path, field: str, offset: int, problem: str) -> None:
        field = field or "(no name)"
        super().__init__(printable(f"{path}: {field} (byte {offset}): {problem}"))
        self.path, self.field, self.offset, self.problem = path, field, offset, problem


def printable(text: str) -> str:
    """Text from a file, fit for one line of an error: what does not print becomes an escape."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_MAX_SHOWN])
    return shown if len(text) <= _MAX_SHOWN else shown + "..."
