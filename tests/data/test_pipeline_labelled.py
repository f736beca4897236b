"""Documents labelled by hand through the whole pipeline: every number of the report is theirs.

What is expected comes from the labels alone (labelled_report.py), tokens from the tokenizer over
the texts that should be left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from puna.cli import puna
from puna.commands.models import named_vocabulary
from puna.data.pipeline.documents import read_documents
from puna.data.shards import open_shards
from puna.tokenizer import Tokenizer
from tests.data.labelled import SOURCES, STEPS, kept, labelled, write_labelled
from tests.data.labelled_report import expected_report

VOCABULARY = named_vocabulary("cria")
TOKENIZER = Tokenizer(VOCABULARY)
BOS_AND_EOS = 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    config = write_labelled(folder)
    CliRunner().invoke(
        puna, ["data", "build", str(config), "--out", str(folder / "out")], catch_exceptions=False
    )
    return folder / "out"


@pytest.fixture(scope="module")
def report(built: Path) -> dict[str, Any]:
    return dict(json.loads((built / "report.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return expected_report(lambda text: len(TOKENIZER.encode(text)) + BOS_AND_EOS)


def test_the_sample_has_something_for_every_step() -> None:
    documents = labelled()
    of_step = {step: [d for d in documents if d.drop and d.drop[0] == step] for step in STEPS}
    assert [step for step, dropped in of_step.items() if not dropped] == ["tokenize"]
    changing = [step for step in STEPS if any(document.marks(step) for document in documents)]
    assert changing == ["boilerplate", "c4", "personal", "decontaminate"]
    assert len(documents) >= 40


@pytest.mark.parametrize("step", STEPS)
def test_a_step_counts_what_it_should(
    report: dict[str, Any], expected: dict[str, Any], step: str
) -> None:
    assert report["steps"][step] == expected["steps"][step]


def test_exactly_the_labelled_documents_are_dropped(
    report: dict[str, Any], expected: dict[str, Any]
) -> None:
    keys = ("step", "source", "reason", "id")
    dropped = [{key: example[key] for key in keys} for example in report["examples"]]
    assert dropped == expected["examples"]


def test_the_totals(report: dict[str, Any], expected: dict[str, Any]) -> None:
    assert report["found"] == expected["found"]
    assert report["sources"] == expected["sources"]
    assert report.keys() == expected.keys() and report["complete"]


def test_the_labelled_text_is_left_and_its_ids(built: Path) -> None:
    shards = open_shards(built / "tokens", VOCABULARY)
    for rank, (source, shard) in enumerate(zip(SOURCES, shards.manifest.shards, strict=True)):
        assert [document.text for document in read_documents(built / "documents", rank)] == (
            kept(source)
        )
        rows = [[1, *TOKENIZER.encode(text), 2] for text in kept(source)]
        assert np.array_equal(shards.tokens(shard), np.concatenate(rows))
        assert shard.source == source
