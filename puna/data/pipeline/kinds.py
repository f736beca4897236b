"""Kinds of sources: how a record becomes text, and how a plain file becomes documents.

Adding one: its functions and a row in `KINDS`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from puna.data.pipeline.gutenberg import strip_gutenberg


class Kind(NamedTuple):
    """`text` of a record (None: it has none), documents of a text file, text without boilerplate.

    `strip` gets the text and whether to join lines that were cut at a width.
    """

    text: Callable[[Mapping[str, Any], str], str | None]
    split: Callable[[str], Iterator[str]]
    strip: Callable[[str, bool], str] | None


def _field(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    return value if isinstance(value, str) else None


def _whole(text: str) -> Iterator[str]:
    yield text


_ARTICLE = re.compile(r"^ = [^=\n]+ = *$", re.MULTILINE)
_SPACED = re.compile(r" @([-,.])@ ")
_BEFORE = re.compile(r" +([.,:;!?%)\]]|'s\b|n't\b)")
_AFTER = re.compile(r"([(\[$£]) +")


def _articles(text: str) -> Iterator[str]:
    """WikiText's articles, spelled as they are written: `1 @,@ 000 km .` is `1,000 km.`"""
    starts = [match.start() for match in _ARTICLE.finditer(text)]
    for begin, end in zip([0, *starts], [*starts, len(text)], strict=True):
        article = _SPACED.sub(r"\1", text[begin:end])
        article = _AFTER.sub(r"\1", _BEFORE.sub(r"\1", article))
        article = re.sub(r'" (.*?) "', r'"\1"', article)
        lines = (line.strip() for line in article.split("\n"))
        yield "\n".join(
            line.strip("= ") if line.startswith("=") else line for line in lines if line
        )


def _country(record: Mapping[str, Any], key: str) -> str | None:
    """A country of The World Factbook as sections of `Field: value` lines."""
    facts = record.get("facts")
    if not isinstance(facts, dict):
        return None
    lines: list[str] = []
    names = facts.get("Government", {}).get("Country name", {})
    for form in ("conventional long form", "conventional short form"):
        name = _plain(names.get(form, {}).get("text", ""))
        if name and name != "none":
            lines = [name]
    for section, fields in facts.items():
        lines += ["", section]
        for title, value in fields.items():
            parts = list(_values(value))
            lines.append(f"{title}: " + "; ".join(f"{n}: {v}" if n else v for n, v in parts))
    return "\n".join(lines).strip()


def _values(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name below the field, plain text) of a field's nested texts."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if isinstance(inner, str):
            if text := _plain(inner):
                yield name, text
        else:
            yield from _values(inner, key)


def _plain(text: str) -> str:
    text = re.sub(r"<(?:br|/p)[^>]*>", " ", text)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())


KINDS: dict[str, Kind] = {
    "plain": Kind(_field, _whole, None),
    "gutenberg": Kind(_field, _whole, strip_gutenberg),
    "factbook": Kind(_country, _whole, None),
    "wikitext": Kind(_field, _articles, None),
}
