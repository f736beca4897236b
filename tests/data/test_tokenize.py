"""Words one at a time give what SentencePiece gives for the whole; processes change nothing."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.data import words
from puna.data.shards import open_shards
from puna.data.tokenize import tokenized, write_shards
from puna.data.words import WordTokenizer
from puna.tokenizer import PieceType, Tokenizer, Vocabulary
from puna.tokenizer.sentencepiece_model import read_model
from tests.samples import AWKWARD, story_lines

MARKS = (
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "▁",
    "▁ ",
    "é",
    "🦙",
    "12",
    ".",
    "'s",
    "<0x0A>",
    "<s>",
    "\0",
)


def texts() -> list[str]:
    generator = random.Random(1)
    strange = ["".join(generator.choices([*MARKS, *"aeilnort"], k=40)) for _ in range(200)]
    return [*AWKWARD, *story_lines(80), *strange, "x" * 500, " " * 300, "\n".join(story_lines(50))]


def joined(vocabulary: Vocabulary, piece: str, kind: PieceType = PieceType.NORMAL) -> Vocabulary:
    """The vocabulary with its last piece replaced."""
    return replace(
        vocabulary,
        pieces=(*vocabulary.pieces[:-1], piece),
        types=(*vocabulary.types[:-1], kind),
    )


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda v: v, 0),
        (lambda v: replace(v, add_space_prefix=False), 0),
        (lambda v: joined(v, ".\n"), 1),
        (lambda v: joined(v, "a▁"), None),
        (lambda v: joined(v, "wal", PieceType.USER_DEFINED), None),
        (lambda v: replace(v, remove_extra_spaces=True), None),
    ],
    ids=["as it is", "no prefix", "a line's end", "a word's end", "user-defined", "no spaces"],
)
def test_words_give_what_the_whole_gives(
    vocabulary: Vocabulary, change: Any, pattern: int | None
) -> None:
    changed = change(vocabulary)
    whole, by_words = Tokenizer(changed), WordTokenizer(changed)
    assert by_words._cut == (None if pattern is None else words._CUTS[pattern])
    for _ in range(2):  # the second time out of memory
        for text in texts():
            found = by_words.encode(text)
            assert found.dtype == np.uint16 and found.tolist() == whole.encode(text), repr(text)


def test_llamas_own_vocabulary(shared: Path) -> None:
    vocabulary = read_model((shared / "tokenizer" / "tokenizer.model").read_bytes())
    whole, by_words = Tokenizer(vocabulary), WordTokenizer(vocabulary)
    assert by_words._cut == words._CUTS[0]
    for text in texts():
        assert by_words.encode(text).tolist() == whole.encode(text)


def test_without_byte_pieces_texts_stay_whole(vocabulary: Vocabulary) -> None:
    kept = [i for i, kind in enumerate(vocabulary.types) if kind != PieceType.BYTE]
    small = replace(
        vocabulary,
        pieces=tuple(vocabulary.pieces[i] for i in kept),
        scores=tuple(vocabulary.scores[i] for i in kept),
        types=tuple(vocabulary.types[i] for i in kept),
    )
    whole, by_words = Tokenizer(small), WordTokenizer(small)
    assert by_words._cut is None
    for text in ("ξ\nξ ξ", "ξξ"):  # unknown neighbours are one id
        assert by_words.encode(text).tolist() == whole.encode(text)


def test_the_memory_has_an_end(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOST", 60)
    by_words = WordTokenizer(vocabulary)
    for text in texts():
        assert by_words.encode(text).tolist() == Tokenizer(vocabulary).encode(text)
        # What one text has is kept until the next one.
        assert sum(map(len, by_words._ids)) <= 60 + len(text) + 1


def test_shards_of_texts_are_the_same_for_any_number_of_processes(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [text for text in texts() if text]
    seen: list[None] = []
    for number in (1, 3):
        monkeypatch.setattr("puna.data.tokenize._BATCH_CHARACTERS", 500)
        write_shards(
            documents, vocabulary, tmp_path / str(number), source="s", licence="CC0-1.0",
            max_tokens_per_shard=3000, num_processes=number, on_document=lambda: seen.append(None),
        )  # fmt: skip
    assert len(seen) == 2 * len(documents)
    first, second = open_shards(tmp_path / "1"), open_shards(tmp_path / "3")
    assert first.manifest == second.manifest and len(first.manifest.shards) > 2
    expected = [
        token for text in documents for token in (1, *Tokenizer(vocabulary).encode(text), 2)
    ]
    found = [t for shard in second.manifest.shards for t in second.tokens(shard).tolist()]
    assert found == expected


@pytest.mark.parametrize("num_processes", [1, 2])
def test_bad_text_leaves_nothing(
    tmp_path: Path, vocabulary: Vocabulary, num_processes: int
) -> None:
    bad = json.loads('"a lone \\ud800 surrogate"')
    with pytest.raises(ValueError, match="not valid Unicode"):
        write_shards(
            ["fine", bad], vocabulary, tmp_path / "a",
            source="s", licence="l", num_processes=num_processes,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_no_processes_are_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="num_processes must be positive"):
        list(tokenized(["a"], vocabulary, num_processes=0))
