"""A labelled corpus through the whole pipeline: the report says exactly what is known of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.commands.models import named_vocabulary
from puna.data.pipeline.build import build
from puna.data.pipeline.config import read_config
from puna.data.pipeline.documents import read_documents
from puna.data.pipeline.report import collect
from puna.data.pipeline.report_files import write_report
from puna.data.shards import open_shards
from puna.tokenizer import Tokenizer
from puna.tokenizer.sentencepiece_model import write_model
from tests.data.corpus import FOOTER, HEADER, prose, web, write_corpus


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    config = read_config(write_corpus(folder))
    assert build(config, folder / "out", write_model(named_vocabulary("cria")))
    return folder / "out"


@pytest.fixture(scope="module")
def report(built: Path) -> dict[str, Any]:
    return collect(built)


LABELS = Counter(page["label"] for page in web())


def test_every_bad_page_is_dropped_for_its_reason(report: dict[str, Any]) -> None:
    steps = report["steps"]
    dropped = {step: tallies["web"]["dropped"] for step, tallies in steps.items()}
    assert dropped == {
        "read": {"empty": LABELS["empty"], "binary": LABELS["binary"]},
        "boilerplate": {},
        "language": {"language de": LABELS["german"], "language fr": LABELS["french"]},
        "gopher": {
            "duplicated_5_n_grams": LABELS["repeats"],
            "gopher_short_doc": LABELS["short"],
            "gopher_too_many_bullets": LABELS["bullets"],
        },
        "c4": {"lorem_ipsum": LABELS["lorem ipsum"]},
        "personal": {"personal information, document": LABELS["personal"]},
        "sites": {"personal information, site people.example": LABELS["site"]},
        "exact": {"exact duplicate": LABELS["exact"]},
        "minhash": {"near-duplicate": LABELS["near"]},
        "decontaminate": {"contaminated by animals": LABELS["contaminated"]},
        "tokenize": {},
    }
    kept = sum(n for label, n in LABELS.items() if label.startswith(("kept", "cut", "scrubbed")))
    assert report["sources"]["web"]["documents_in"] == len(web())
    assert report["sources"]["web"]["documents_out"] == kept


def test_what_was_found(report: dict[str, Any]) -> None:
    ink = sum(len("".join(text.split())) for text in (HEADER, FOOTER))
    tokens = sum(source["tokens"] for source in report["sources"].values())
    assert report["found"] == {
        "boilerplate_characters": ink,
        "emails": 2 + 6,  # six of them of the site that goes later
        "phones": 2,
        "ips": 1,
        "exact_duplicates": 2,  # one in web, one of web's in more
        "near_duplicates": 1,
        "contaminated_paragraphs": 2,
        "contaminated_documents": 1,
        "tokens": tokens,
    }
    assert report["complete"]
    assert report["steps"]["boilerplate"]["books"]["dropped"] == {"only boilerplate": 1}
    assert report["steps"]["exact"]["more"]["dropped"] == {"exact duplicate": 1}
    assert "c4" in report["steps"] and "books" not in report["steps"]["c4"]


def test_every_count_adds_up(report: dict[str, Any]) -> None:
    before: dict[str, tuple[int, int]] = {}
    for tallies in report["steps"].values():
        for source, t in tallies.items():
            assert t["documents_in"] == t["documents_out"] + sum(t["dropped"].values())
            taken = sum(t["characters_dropped"].values()) + t["characters_removed"]
            assert t["characters_in"] == t["characters_out"] + taken
            came = (t["documents_in"], t["characters_in"])
            assert before.get(source, came) == came
            before[source] = (t["documents_out"], t["characters_out"])


def test_the_text_that_is_left(built: Path) -> None:
    (book,) = (document.text for document in read_documents(built / "documents", 0))
    paragraphs = [prose(seed) for seed in (21, 22, 23, 24)]
    verse = "The llama is a woolly sort\nof fleecy, hairy goat,\nwith an indolent expression"
    assert book == "\n\n".join([*paragraphs, verse])
    pages = [document.text for document in read_documents(built / "documents", 1)]
    (scrubbed,) = (page for page in pages if "Write to" in page)
    assert scrubbed == prose(8, 30) + (
        " Write to email@example.com or email@example.com. Call 555-0100 or 555-0100 today. "
        "The host is 192.0.2.1 and not 192.168.0.1, says version 1.2.3.4.5."
    )
    assert f"{prose(12)}\n{prose(13)}" in pages
    assert f"{prose(14)}\n{prose(16, 60)}" in pages
    (country,) = (document.text for document in read_documents(built / "documents", 2))
    assert country == (
        f"Punaland\n\nIntroduction\nBackground: {prose(31)}\n\nGovernment\nCountry name: "
        "conventional short form: Punaland\n\nEconomy\nExports: total: $1 & more; note: wool"
    )


def test_the_shards_are_the_documents(built: Path, report: dict[str, Any]) -> None:
    vocabulary = named_vocabulary("cria")
    tokenizer, shards = Tokenizer(vocabulary), open_shards(built / "tokens", vocabulary)
    assert [shard.source for shard in shards.manifest.shards] == ["books", "web", "facts", "more"]
    assert shards.manifest.shards[2].licence == "CC0"
    for rank, shard in enumerate(shards.manifest.shards):
        shards.verify(shard)
        texts = [document.text for document in read_documents(built / "documents", rank)]
        rows = np.split(shards.tokens(shard), shards.ends(shard)[:-1].astype(int))
        assert [tokenizer.decode(row) for row in rows] == texts
        assert shard.num_tokens == report["sources"][shard.source]["tokens"]
    mix = json.loads((built / "tokens" / "mix.json").read_text())
    tokens = {name: source["tokens"] for name, source in report["sources"].items()}
    mixed = tokens["books"] + tokens["web"] + 4 * tokens["facts"] + tokens["more"]
    assert mix["facts"] == pytest.approx(4 * tokens["facts"] / mixed)
    assert sum(mix.values()) == pytest.approx(1)
    assert mix == {name: source["weight"] for name, source in report["sources"].items()}


def test_the_written_report(built: Path) -> None:
    written = write_report(built)
    assert json.loads((built / "report.json").read_text()) == written
    page = (built / "report.md").read_text()
    assert "| web | ODC-By-1.0 | 21 | 7 |" in page
    assert "- 2 telephone numbers replaced" in page
    assert "gopher\\_short\\_doc" in page
    assert "not finished" not in page
    assert "p1@mail.com" not in page  # what is dropped as personal is not shown either
    for plot in ("flow.png", "mix.png"):
        assert (built / plot).read_bytes().startswith(b"\x89PNG")


def test_a_build_is_not_done_twice(built: Path) -> None:
    def written() -> dict[str, int]:
        files = [p for p in built.rglob("*") if p.is_file() and "report" not in p.name]
        return {str(p): p.stat().st_mtime_ns for p in files if p.name != ".lock"}

    before = written()
    assert build(read_config(built.parent / "corpus.toml"), built, None)
    assert written() == before
