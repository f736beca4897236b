"""The folder that `puna data build` leaves, as training finds it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from puna.data.corpus import open_corpus
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import write_model
from tests.recipes.corpora import MIX, new_corpus


@pytest.fixture
def folder(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    return new_corpus(tmp_path / "corpus", vocabulary)


def test_the_corpus_or_its_tokens(folder: Path, vocabulary: Vocabulary) -> None:
    for path in (folder, folder / "tokens"):
        corpus = open_corpus(path)
        assert corpus.shards == folder / "tokens"
        assert corpus.mix == MIX and corpus.vocabulary == vocabulary
        assert corpus.manifest.sources == ("web", "books")


def test_a_tokenizer_that_is_not_the_shards_is_not_taken(
    folder: Path, vocabulary: Vocabulary
) -> None:
    other = dataclasses.replace(vocabulary, add_space_prefix=False)
    (folder / "tokenizer.model").write_bytes(write_model(other))
    assert open_corpus(folder).vocabulary is None
    (folder / "tokenizer.model").unlink()
    assert open_corpus(folder).vocabulary is None


def test_a_damaged_tokenizer_is_named(folder: Path) -> None:
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"corpus.tokenizer\.model: the SentencePiece model is"):
        open_corpus(folder)


def test_what_is_declared_of_the_mix(folder: Path) -> None:
    path = folder / "tokens" / "mix.json"
    # Of a source of which nothing was left there are no shards.
    path.write_text(json.dumps(MIX | {"empty": 0.0}))
    assert open_corpus(folder).mix == MIX
    path.write_text(json.dumps(MIX | {"web": 0}))
    assert open_corpus(folder).mix == MIX | {"web": 0.0}
    path.unlink()
    assert open_corpus(folder).mix is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(MIX | {"wiki": 0.5}), "only one has wiki"),
        (json.dumps({"web": 1}), "only one has books"),
        ('{"web": 0.5, "books": "all"}', "does not give a number for each source"),
        ('{"web": 0.5, "books": true}', "does not give a number"),
        ("[0.5, 0.5]", "does not give a number"),
        ('{"web": 0.5,', "is damaged"),
    ],
)
def test_a_mix_that_does_not_fit_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "tokens" / "mix.json").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        open_corpus(folder)
    assert "mix.json" in str(error.value)


def test_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no shards"):
        open_corpus(tmp_path)
    (tmp_path / "tokens").mkdir()
    with pytest.raises(ValueError, match="tokens holds no shards"):
        open_corpus(tmp_path)
