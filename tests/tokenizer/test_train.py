"""A tokenizer learned from text, with Llama's properties."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from puna.tokenizer import PieceType, Tokenizer, Vocabulary
from puna.tokenizer.train import train
from tests.samples import AWKWARD, story_lines


def test_the_layout_is_llamas(vocabulary: Vocabulary) -> None:
    assert len(vocabulary) == 420
    assert vocabulary.pieces[:3] == ("<unk>", "<s>", "</s>")
    assert vocabulary.types[:3] == (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.CONTROL)
    assert vocabulary.pieces[3:259] == tuple(f"<0x{value:02X}>" for value in range(256))
    assert set(vocabulary.types[3:259]) == {PieceType.BYTE}
    assert set(vocabulary.types[259:]) == {PieceType.NORMAL}
    assert vocabulary.add_space_prefix
    assert not vocabulary.remove_extra_spaces and not vocabulary.charsmap


def test_words_are_learned(tokenizer: Tokenizer) -> None:
    text = "The old llama walked over the high grassland at dawn."
    assert len(tokenizer.encode(text)) < len(text) / 2
    assert "▁llama" in tokenizer.vocabulary.pieces


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    learned = tokenizer.vocabulary.pieces[259:]
    assert all(re.fullmatch(r"\d", piece) for piece in learned if re.search(r"\d", piece))
    pieces = [tokenizer.vocabulary.pieces[token] for token in tokenizer.encode("in 1998")]
    assert pieces[-4:] == ["1", "9", "9", "8"]  # though the text has this year often


def test_every_text_comes_back(tokenizer: Tokenizer) -> None:
    for text in (*AWKWARD, *map(chr, range(256)), "\t\t\n", "x" * 3000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_is_reproducible(vocabulary: Vocabulary) -> None:
    assert train(story_lines(400), vocab_size=420, num_threads=2) == vocabulary


def test_long_lines_are_cut_not_dropped() -> None:
    vocabulary = train([" ".join(story_lines(400))], vocab_size=400)
    assert "▁llama" in vocabulary.pieces


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (["hello"], 100, "use 300 or more"),
        (["hello"], 1000, "Vocabulary size too high"),
        ([], 300, "no text"),
        (["half a pair \ud83e"], 300, "surrogates"),
    ],
)
def test_too_little_or_bad_text(texts: list[str], vocab_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(texts, vocab_size=vocab_size)


@pytest.mark.parametrize("error", [ValueError("a.jsonl, line 5: bad"), KeyboardInterrupt()])
def test_what_goes_wrong_in_the_texts_arrives_as_it_was(error: BaseException) -> None:
    def texts() -> Iterator[str]:
        yield "hello"
        raise error

    with pytest.raises(type(error)) as caught:
        train(texts(), vocab_size=300)
    assert caught.value is error
