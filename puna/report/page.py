"""A page: its head with a policy that lets no script run, its style, and sections.

What is shown may be anyone's text: it is escaped where it enters (`markup`), and the policy holds
in any case.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from puna.report.markup import Markup, element, escaped

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
)


def page(title: str, *parts: Markup) -> str:
    """A whole page of `parts`, one below the other."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", element("main", *parts))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def section(title: str, said: str, *parts: Markup) -> Markup:
    """A heading, a sentence about what is below it ("": none), and that."""
    introduction = [element("p", said, class_="said")] if said else []
    return element("section", element("h2", title), *introduction, *parts)


def figures(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Large figures side by side: (figure, what it is)."""
    shown = [element("div", element("dt", said), element("dd", what)) for what, said in pairs]
    return element("dl", *shown, class_="figures")


def picture(path: Path, said: str) -> Markup:
    """A PNG, kept in the page itself; `said` for who cannot see it."""
    data = base64.b64encode(path.read_bytes()).decode()
    source = f"data:image/png;base64,{data}"
    return Markup(f'<img class="picture" alt="{escaped(said)}" src="{source}">')
