"""The report's page: every number of the record is on it, and no document makes it do anything."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from puna.data.pipeline.build import build
from puna.data.pipeline.config import read_config
from puna.data.pipeline.reasons import in_words
from puna.data.pipeline.report import collect
from puna.data.pipeline.report_files import write_report
from puna.data.pipeline.report_html import page
from puna.report.markup import Markup, element, escaped
from puna.report.tables import bar, share
from tests.data.corpus import FRENCH, prose

HOSTILE = [
    "<script>alert(1)</script>",
    "</blockquote></details></main><script src=//evil.example/x.js></script>",
    '<img src=x onerror="alert(1)">',
    "</style><style>*{display:none}</style><!-- ",
    "&lt;b&gt; &amp; \"quoted\" 'too'",
    "a\x00b \u202edlrow\u202c \ud83e",
]
CONFIG = """
[[source]]
name = "web"
licence = "<b>MIT</b>"
path = "a.jsonl"

[steps]
minhash = false

[tokenize]
enabled = false
"""
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "section", "h1", "h2", "h3", "p",
    "div", "dl", "dt", "dd", "table", "thead", "tbody", "tfoot", "tr", "th", "td", "svg", "rect",
    "ul", "li", "span", "code", "cite", "bdi", "blockquote", "details", "summary", "a", "strong",
}  # fmt: skip


class Read(HTMLParser):
    """The page's elements, and the texts of each kind of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            self.texts[tag][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    records = [{"text": f"{text} " * 3, "title": text} for text in HOSTILE]
    records += [{"text": prose(1)}, {"text": prose(1)}, {"text": FRENCH}, {"text": " "}]
    records.append({"text": prose(2, 5) + " Mail p@mail.com." * 6, "title": "People"})
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "corpus.toml").write_text(CONFIG)
    assert build(read_config(folder / "corpus.toml"), folder / "out", None)
    return folder / "out"


def test_a_document_is_text_on_the_page(built: Path) -> None:
    write_report(built)
    text = (built / "report.html").read_text()
    read = Read(text)
    assert {tag for tag, _ in read.tags} <= ALLOWED
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert "src" not in attributes and attributes.get("href", "#").startswith("#")
    assert "script" not in "".join(read.texts["style"])
    shown = "".join(read.texts["body"])
    titles = [example["title"] for example in collect(built)["examples"] if example["title"]]
    assert titles and read.texts["cite"] == [escaped_text(title) for title in titles]
    assert HOSTILE[0] in shown and "<b>MIT</b>" in shown
    policy = next(a["content"] for tag, a in read.tags if a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; style-src")
    assert "p@mail.com" not in text  # nor of a page that another step dropped


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_hostile_is_markup(built: Path, hostile: str) -> None:
    """In every place that holds a text of someone else's."""
    report = collect(built)
    report["sources"] = {"web": report["sources"]["web"] | {"licence": hostile}}
    report["examples"] = [
        dict.fromkeys(("reason", "id", "title", "excerpt"), hostile)
        | {"step": "gopher", "source": "web"}
    ]
    tally = report["steps"]["gopher"]["web"]
    tally |= {
        "dropped": {hostile: 7654},
        "characters_dropped": {hostile: 98765},
        "events": {hostile: 4321},
    }
    read = Read(page(report, hostile))
    assert {tag for tag, _ in read.tags} <= ALLOWED
    shown = escaped_text(hostile)
    assert read.texts["h1"] == [shown]
    assert read.texts["cite"] == [shown] and read.texts["blockquote"] == [shown]
    assert sum(shown in cell for cell in read.texts["td"]) == 2  # licence, reason
    assert "4,321" in read.texts["td"] and "7,654" in read.texts["td"]
    page(report, hostile).encode()  # UTF-8, whatever the document held


def escaped_text(text: str) -> str:
    for sign in ("\x00", "\u202e", "\u202c", "\ud83e"):
        text = text.replace(sign, "\ufffd")
    return text


def test_every_number_is_on_the_page(built: Path) -> None:
    report = collect(built)
    read = Read(page(report, "corpus"))
    cells = read.texts["td"]
    for tallies in report["steps"].values():
        for tally in tallies.values():
            numbers: list[Any] = [tally[f"{what}_{way}"] for what in ("documents", "characters")
                                  for way in ("in", "out")]  # fmt: skip
            numbers += [*tally["dropped"].values(), *tally["characters_dropped"].values()]
            numbers += [*tally["events"].values(), tally["characters_removed"]]
            for number in numbers:
                assert f"{number:,}" in cells or number == 0
    assert "exact duplicate" in "".join(cells)
    assert "language fr" in cells
    assert "not finished" not in "".join(read.texts["body"])
    unfinished = Read(page(report | {"complete": False}, "corpus"))
    assert "This build is not finished." in unfinished.texts["strong"]


def test_a_build_that_has_done_nothing_has_a_page(built: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes((built / "plan.json").read_bytes())
    write_report(tmp_path)
    read = Read((tmp_path / "report.html").read_text())
    assert "0" in read.texts["dd"] and "None was." in read.texts["p"]


def test_markup() -> None:
    assert element("a", "<", Markup("<b>"), href='"x', class_="n") == (
        '<a href="&quot;x" class="n">&lt;<b></a>'
    )
    assert escaped(escaped("<")) == "&lt;"
    assert [share(x) for x in (0.0001, 0.1234, 0.9999, 1.0)] == [
        "< 0.1 %", "12.3 %", "> 99.9 %", "100.0 %",
    ]  # fmt: skip
    assert bar([("kept", 0.25), ("c1", 0.0), ("c2", 0.75)], "said").count("<rect") == 2
    assert 'x="25.000"' in bar([("kept", 0.25), ("c2", 0.75)], "said")
    assert in_words("duplicated_7_n_grams") == "too much of it in repeats of 7 words"
    assert in_words("language fr") == "language fr"
