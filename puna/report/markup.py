"""HTML out of Python: text becomes a page's text by itself, never its markup."""

from __future__ import annotations

import html
import re

# Controls, lone surrogates and the marks that turn the direction of what follows.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


class Markup(str):
    """Text that is HTML already; only what is made here is."""


def element(name: str, *children: str, **attributes: str) -> Markup:
    """`<name attributes>children</name>`; a child that is no `Markup` is escaped.

    `class_` stands for `class`, an underscore within a name for a hyphen.
    """
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
    )
    inner = "".join(map(escaped, children))
    return Markup(f"<{name}{named}>{inner}</{name}>")


def escaped(text: str) -> Markup:
    """The text as HTML, as far as it is `visible`."""
    return text if isinstance(text, Markup) else Markup(html.escape(visible(text)))


def visible(text: str) -> str:
    """The text with U+FFFD for characters that are not to be seen, or are none."""
    return _UNSEEN.sub("\ufffd", text)


def joined(parts: list[Markup]) -> Markup:
    return Markup("".join(parts))
