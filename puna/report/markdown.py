"""Markdown out of Python: text becomes a document's text, never its markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from puna.report.markup import visible

_SIGNS = re.compile(r"([\\`*_\[\]<>|#~$&])")


def plain(text: str) -> str:
    """Text in one line, whose signs mean nothing: no tables, links or tags of its own."""
    return _SIGNS.sub(r"\\\1", " ".join(visible(text).split()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of plain text."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(plain, line)) + " |" for line in lines]
