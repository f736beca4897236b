"""Words and sentences for datatrove's filters, in place of spaCy: no model, no tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

from datatrove.utils.word_tokenizers import WordTokenizer

_END = re.compile(r"""[.!?]+["'”’)\]]*(?=\s)""")


class Words(WordTokenizer):
    """Words parted by white space, as Gopher's rules count them: a comma is no word of its own.

    Two of them are equal, so that datatrove's caches of a document's words serve all its filters.
    """

    def __init__(self) -> None:
        super().__init__("words")

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[begin:end].strip() for begin, end in self._spans(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return list(self._spans(text))

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        begin = 0
        for match in _END.finditer(text):
            if text[begin : match.end()].strip():
                yield begin, match.end()
                begin = match.end()
        if text[begin:].strip():
            yield begin, len(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Words)

    def __hash__(self) -> int:
        return hash(Words)
