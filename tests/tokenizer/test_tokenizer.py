"""Encoding and decoding against SentencePiece itself and the `tokenizers` library."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from puna.tokenizer import PieceType, Tokenizer, Vocabulary
from puna.tokenizer.json_file import write_json
from puna.tokenizer.sentencepiece_model import read_model, write_model
from tests.samples import AWKWARD, story_lines

Pair = tuple[Tokenizer, sentencepiece.SentencePieceProcessor]


@pytest.fixture(params=["trained", "llama"])
def pair(request: pytest.FixtureRequest, vocabulary: Vocabulary) -> Pair:
    """A tokenizer, and SentencePiece with the same vocabulary (Llama's from its own file)."""
    if request.param == "trained":
        model = write_model(vocabulary)
    else:
        shared: Path = request.getfixturevalue("shared")
        model = (shared / "tokenizer" / "tokenizer.model").read_bytes()
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    return Tokenizer(read_model(model)), library


def test_decode_equals_sentencepiece(pair: Pair) -> None:
    _assert_decodes_alike(*pair)


@pytest.mark.parametrize("name", ["remove_extra_spaces", "add_space_prefix"])
def test_decode_equals_sentencepiece_where_spaces_differ(name: str, vocabulary: Vocabulary) -> None:
    model = write_model(dataclasses.replace(vocabulary, **{name: not getattr(vocabulary, name)}))
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    _assert_decodes_alike(Tokenizer(read_model(model)), library)


def _assert_decodes_alike(
    tokenizer: Tokenizer, library: sentencepiece.SentencePieceProcessor
) -> None:
    generator = random.Random(1)
    types = tokenizer.vocabulary.types
    of_type = {kind: [i for i, t in enumerate(types) if t == kind] for kind in dict.fromkeys(types)}
    assert {PieceType.UNKNOWN, PieceType.CONTROL, PieceType.BYTE} < set(of_type)
    # Type first, so that bytes, control ids and lone spaces come as often as words.
    choices = [*of_type.values(), [tokenizer.vocabulary.pieces.index("▁")]]
    for _ in range(2000):
        kinds = generator.choices(choices, k=generator.randrange(12))
        ids = [generator.choice(kind) for kind in kinds]
        assert tokenizer.decode(ids) == library.decode(ids), ids


def test_streaming_equals_decoding(pair: Pair) -> None:
    tokenizer, _ = pair
    generator = random.Random(2)
    sequences = [tokenizer.encode(text) for text in AWKWARD]
    sequences += [generator.choices(range(tokenizer.vocab_size), k=20) for _ in range(200)]
    sequences += [generator.choices(range(3, 259), k=20) for _ in range(200)]
    for ids in sequences:
        stream = tokenizer.stream()
        pieces = [stream.push(token) for token in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids)


def test_streaming_holds_back_half_a_character(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    ids = tokenizer.encode("🦙")
    assert [stream.push(token) for token in ids] == ["", "", "", "", "🦙"]  # ▁ and four bytes
    assert stream.finish() == ""
    assert [stream.push(token) for token in ids[1:4]] == ["", "", ""]
    assert stream.push(tokenizer.encode("a")[-1]).startswith("\ufffd\ufffd\ufffd")
    assert stream.push(ids[1]) == "" and stream.finish() == "\ufffd"


def test_a_stream_may_keep_the_first_space(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The")
    for strip, expected in ((True, "The"), (False, " The")):
        stream = tokenizer.stream(strip_space=strip)
        assert "".join(stream.push(token) for token in ids) == expected


@pytest.mark.parametrize("text", ["<s>", "</s>", "<0x41>", "<unk>", "a<s>b</s> <unk>", "<s></s>"])
def test_text_never_becomes_a_control_id(pair: Pair, text: str) -> None:
    tokenizer, _ = pair
    ids = tokenizer.encode(text)
    types = tokenizer.vocabulary.types
    assert not {types[i] for i in ids} & {PieceType.CONTROL, PieceType.UNKNOWN}
    assert tokenizer.vocabulary.pieces.index("<0x41>") not in ids
    assert tokenizer.decode(ids) == text


def test_bos_and_eos_stand_once_at_the_ends(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("a llama")
    assert not {1, 2} & set(plain)
    assert tokenizer.encode("a llama", bos=True) == [1, *plain]
    assert tokenizer.encode("a llama", eos=True) == [*plain, 2]
    assert tokenizer.encode("", bos=True, eos=True) == [1, 2]
    assert tokenizer.decode([1, *plain, 2]) == "a llama"


def test_encode_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*AWKWARD, *story_lines(20)]
    expected = [tokenizer.encode(text, bos=True, eos=True) for text in texts]
    assert tokenizer.encode_batch(texts, bos=True, eos=True, num_threads=2) == expected


def test_round_trip_of_awkward_text(pair: Pair) -> None:
    tokenizer, library = pair
    for text in AWKWARD:
        ids = tokenizer.encode(text)
        assert ids == library.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.vocabulary.unk_id not in ids


def test_json_file_encodes_alike_in_the_tokenizers_library(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    library = tokenizers.Tokenizer.from_str(write_json(vocabulary).decode())
    # The library takes the names of control ids in text for the ids; Puna must not.
    for text in (*AWKWARD[:-1], *story_lines(50)):
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids == tokenizer.encode(text), text
        assert library.decode(ids) == text


def test_errors_are_value_errors(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        tokenizer.encode("half a pair \ud83e")
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"id {wrong} is outside"):
            tokenizer.decode([wrong])
