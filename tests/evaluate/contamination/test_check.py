"""The contamination of a run by shards: figures, files, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from puna.commands.models import named_vocabulary
from puna.data.shards import ShardSet, ShardWriter, open_shards
from puna.evaluate.contamination.check import check, read_contamination
from puna.evaluate.contamination.overlap import Overlap
from puna.tokenizer import Tokenizer
from tests.evaluate.runs import sample, write_run

TEXT = "The quick brown fox jumps over the lazy dog while seven llamas watch from the high hill."
CLEAN = "Which mountains do the potatoes of the oldest markets of the coast come from, and when?"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(named_vocabulary("cria"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two questions that are in the text, which are answered, and two that are not."""
    samples = [
        sample("0", 1.0, question=TEXT[:60], answer=TEXT[61:]),
        sample("1", 1.0, question=TEXT, answer="Yes."),
        sample("2", 0.0, question=CLEAN, answer="Peru."),
        sample("3", 0.0, question=CLEAN + " Why?", answer="Peru."),
    ]
    return write_run(tmp_path / "run", {"arc": samples, "boolq": samples[2:]})


def shards(folder: Path, tokenizer: Tokenizer, *documents: str) -> ShardSet:
    """A shard a document."""
    with ShardWriter(
        folder, tokenizer.vocabulary, source="web", licence="MIT", max_tokens_per_shard=1
    ) as writer:
        for document in documents:
            writer.add(tokenizer.encode(document))
    return open_shards(folder)


def test_a_run(run: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    corpus = shards(
        tmp_path / "corpus", tokenizer, "Once upon a time.", f"He said: {TEXT} So there!"
    )
    read = list[int]()
    found = check(run, [corpus], tokenizer, on_tokens=read.append)
    assert found.tokens == corpus.manifest.num_tokens == sum(read)
    assert (found.documents, found.sources) == (2, ("web",))
    arc, boolq = found.tasks
    first = arc.lengths[0]
    assert (arc.questions, first.length) == (4, 10)
    assert [subset.count for subset in first.subsets] == [2, 2, 2, 2]
    assert [subset.mean for subset in first.subsets] == [0.0, 1.0, 0.0, 1.0]
    assert boolq.lengths[0].share == 0.0 and boolq.shown.length == 10
    assert read_contamination(run) == found
    lines = (run / "contamination" / "arc.jsonl").read_text().splitlines()
    shares = [json.loads(line)["shares"]["10"] for line in lines]
    assert shares[0] > 0.9 and 0.8 < shares[1] < 1 and shares[2:] == [0.0, 0.0]
    assert first.share == pytest.approx(np.mean(shares), abs=1e-6)
    assert not (run / ".contamination.npz").exists()


def test_a_scan_that_was_stopped_goes_on(
    run: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = shards(tmp_path / "corpus", tokenizer, TEXT, "Once upon a time.", CLEAN)
    whole = check(run, [corpus], tokenizer)
    scan, scanned = Overlap.scan, []

    def stopping(self: Overlap, text: np.ndarray, on_tokens: object) -> None:
        scanned.append(len(text))
        if len(scanned) == 2:
            raise KeyboardInterrupt
        scan(self, text, on_tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(Overlap, "scan", stopping)
    with pytest.raises(KeyboardInterrupt):
        check(run, [corpus], tokenizer)
    assert read_contamination(run) == whole  # of before, not half of one
    first, second, third = (shard.num_tokens for shard in corpus.manifest.shards)
    read = list[int]()
    assert check(run, [corpus], tokenizer, on_tokens=read.append) == whole
    assert scanned == [first, second, second, third]
    assert read == [first, second, third]


def test_what_was_noted_of_another_scan_is_left(
    run: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    corpus = shards(tmp_path / "corpus", tokenizer, TEXT)
    np.savez(run / ".contamination.npz", key=np.array("other"), done=np.array(1), spans=[0])
    assert check(run, [corpus], tokenizer).tasks[0].lengths[0].share > 0.4
    (run / ".contamination.npz").write_bytes(b"PK no archive")
    assert check(run, [corpus], tokenizer).tasks[0].lengths[0].share > 0.4


def test_not_checked_and_damaged(run: Path) -> None:
    assert read_contamination(run) is None
    (run / "contamination.json").write_text('{"tasks": [{}]}')
    with pytest.raises(ValueError, match=r"contamination\.json is damaged"):
        read_contamination(run)
