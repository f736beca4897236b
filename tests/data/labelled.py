"""The labelled sample: the documents of labelled.txt, before and after each step, and a config."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import zstandard

STEPS = ("read", "boilerplate", "language", "gopher", "c4", "personal", "sites", "exact", "minhash",
         "decontaminate", "tokenize")  # fmt: skip
SOURCES = {  # name: kind, licence, upsample, file
    "books": ("gutenberg", "public domain", 1.0, "books.jsonl.zst"),
    "web": ("plain", "ODC-By-1.0", 1.0, "web.jsonl.gz"),
    "notes": ("plain", "CC0", 3.0, "notes.txt"),
}
OFF = {("books", "c4"), ("notes", "c4")}
CONFIG = """
[[source]]
name = "books"
path = "books.jsonl.zst"
licence = "public domain"
kind = "gutenberg"
steps = { c4 = false, gopher = { max_words = 0, repetition = false } }

[[source]]
name = "web"
path = "web.jsonl.gz"
licence = "ODC-By-1.0"

[[source]]
name = "notes"
path = "notes.txt"
licence = "CC0"
separator = "%%"
upsample = 3
steps = { c4 = false }

[steps]
sites = { min_found = 5 }
decontaminate = { evaluation = ["eval"] }
"""
EVALUATION = {  # question, answer
    "birds": (
        "Which of the large birds that cannot fly lays the biggest eggs of all, and where in the "
        "world does it live?",
        "the ostrich, in Africa",
    ),
    "sums": ("How many apples has the youngest brother left after the fair?", "seven"),
}
_HEAD = re.compile(
    r"=== (?P<source>\w+): (?:kept|(?P<step>\w+): (?P<reason>.+?))"
    r"(?:; (?P<counts>.*?))?(?: at (?P<host>\S+))?"
)
_MARK = re.compile(r"\{\{(?P<what>[^|]+)\|(?P<text>.*?)\}\}", re.DOTALL)
# What is marked: the step that takes it out, and what comes in its place.
_MARKS = {
    "boilerplate": ("boilerplate", ""),
    "line-filter-no_terminal_punc": ("c4", ""),
    "line-filter-too_few_words": ("c4", ""),
    "line-filter-policy": ("c4", ""),
    "line-filter-javascript": ("c4", ""),
    "emails": ("personal", "email@example.com"),
    "phones": ("personal", "555-0100"),
    "ips": ("personal", "192.0.2.1"),
    "paragraphs cut": ("decontaminate", ""),
}


@dataclass(frozen=True)
class Labelled:
    """A document; `drop` is the step and reason that it goes for, `counts` what is counted then."""

    id: str
    source: str
    marked: str
    drop: tuple[str, str] | None
    counts: Counter[str]
    host: str | None

    def after(self, step: str) -> str:
        """The text as `step` leaves it; after "read" as it was given."""
        done = STEPS[: STEPS.index(step) + 1]

        def applied(mark: re.Match[str]) -> str:
            step, replacement = _MARKS[mark["what"]]
            return replacement if step in done else mark["text"]

        text = _MARK.sub(applied, self.marked).replace("<NUL>", "\0")
        if self.source != "books":
            return " ".join(text.split("\n")).replace("  ", "\n")
        if "boilerplate" in done:
            return text.replace("~\n", " ")
        return text.replace("~\n", "\n").replace("\n", "\r\n")  # as Project Gutenberg's are

    def marks(self, step: str) -> list[tuple[str, str]]:
        """(what, text) of everything that `step` takes out."""
        found = _MARK.findall(self.marked)
        return [(what, text) for what, text in found if _MARKS[what][0] == step]


def labelled() -> list[Labelled]:
    """The documents, in the order of their sources."""
    text = Path(__file__).with_name("labelled.txt").read_text(encoding="utf-8")
    found: list[Labelled] = []
    numbers: Counter[str] = Counter()
    for part in re.split(r"^(?==== )", text, flags=re.MULTILINE)[1:]:
        line, _, body = part.partition("\n")
        head = _HEAD.fullmatch(line)
        assert head is not None, line
        source = head["source"]
        numbers[source] += 1
        counted = (one.rpartition(" ") for one in (head["counts"] or "").split(", ") if one)
        found.append(
            Labelled(
                f"{source}/{SOURCES[source][-1]}/{numbers[source]}",
                source,
                body.rstrip("\n"),
                (head["step"], head["reason"]) if head["step"] else None,
                Counter({name: int(count) for name, _, count in counted}),
                head["host"],
            )
        )
    return found


def write_labelled(folder: Path) -> Path:
    """Writes sources, evaluation sets and the configuration, whose path it returns."""
    by_source: dict[str, list[Labelled]] = {name: [] for name in SOURCES}
    for document in labelled():
        by_source[document.source].append(document)

    def jsonl(source: str) -> bytes:
        lines = []
        for document in by_source[source]:
            record = {"text": document.after("read")}
            record |= {"url": f"https://{document.host}/page"} if document.host else {}
            lines.append(json.dumps(record) + "\n")
        return "".join(lines).encode()

    (folder / "books.jsonl.zst").write_bytes(zstandard.compress(jsonl("books")))
    (folder / "web.jsonl.gz").write_bytes(gzip.compress(jsonl("web")))
    notes = "\n%%\n".join(document.after("read") for document in by_source["notes"])
    (folder / "notes.txt").write_text(notes, encoding="utf-8")
    (folder / "eval").mkdir()
    for name, (question, answer) in EVALUATION.items():
        item = {"question": question, "choices": [answer, "nobody knows"]}
        (folder / "eval" / f"{name}.jsonl").write_text(json.dumps(item) + "\n")
    (folder / "corpus.toml").write_text(CONFIG)
    return folder / "corpus.toml"


def kept(source: str) -> list[str]:
    """The texts of a source that are left, in order."""
    return [d.after(STEPS[-1]) for d in labelled() if d.source == source and d.drop is None]
