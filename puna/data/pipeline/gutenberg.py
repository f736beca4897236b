"""Project Gutenberg's own text around a book: header, licence, credits, footer; and its width."""

from __future__ import annotations

import re

# The markers since 2003, and the ends of "the small print" before.
_START = re.compile(
    r"^[ \t]*(?:\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG.*?\*\*\*"
    r"|\*END.{0,3}THE SMALL PRINT!.*?(?:\*END\*|$)"
    r"|\*{3}START\*\*THE SMALL PRINT.*?\*END[^\n]*)[ \t]*$",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
_END = re.compile(
    r"^[ \t]*(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG"
    r"|(?:This is the )?End of (?:the |this )?Project Gutenberg"
    r"|End Project Gutenberg)",
    re.MULTILINE | re.IGNORECASE,
)
# A paragraph of credits or notes, at the begin or the end of a book.
_CREDIT = re.compile(
    r"(?:E-?text (?:was )?(?:prepared|produced)|(?:This e-?(?:book|text) was )?(?:produced|"
    r"prepared|transcribed|scanned|digiti[sz]ed) (?:by|from)|"
    r"\[?transcriber['’]?s? note|HTML version by|"
    r"\[?Note: (?:Project Gutenberg|Images of)|This file was produced from|"
    r"Images of the original|Text enclosed by underscores|"
    r"Updated editions will replace|.{0,200}(?:Distributed Proofread|www\.pgdp\.net|"
    r"gutenberg\.(?:org|net)|Project Gutenberg))",
    re.IGNORECASE | re.DOTALL,
)
_ILLUSTRATION = re.compile(r"\[(?:Illustration|Frontispiece)(?::[^\]]{0,400})?\]", re.IGNORECASE)
# Markers count in a header's half and a footer's, or in as many characters as either may have.
_LONGEST = 25_000
_EDGE = 12  # paragraphs at either end among which credits are looked for
_MIN_WIDTH = 50  # mean characters of lines that were cut at a width; verse has shorter ones


def strip_gutenberg(text: str, unwrap: bool) -> str:
    """The book alone: one paragraph a line if `unwrap`, verse and tables as they are."""
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    starts = [match.end() for match in _START.finditer(text, 0, max(len(text) // 2, _LONGEST))]
    text = text[max(starts, default=0) :]
    if end := _END.search(text, max(min(len(text) // 2, len(text) - _LONGEST), 0)):
        text = text[: end.start()]
    text = _ILLUSTRATION.sub("", text)
    paragraphs = [p.strip("\n") for p in re.split(r"\n[ \t]*\n", text) if p.strip()]
    last = len(paragraphs) - _EDGE
    kept = [
        p
        for number, p in enumerate(paragraphs)
        if not ((number < _EDGE or number >= last) and _CREDIT.match(p.strip()))
    ]
    return "\n\n".join(_unwrapped(p) if unwrap else p for p in kept)


def _unwrapped(paragraph: str) -> str:
    lines = paragraph.split("\n")
    full = lines[:-1]
    if not full or any(line[:2].isspace() and line.strip() for line in full[1:]):
        return paragraph
    if sum(map(len, full)) / len(full) < _MIN_WIDTH:
        return paragraph
    return " ".join(line.strip() for line in lines)
