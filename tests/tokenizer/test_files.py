"""Tokenizer files: written and read back, and damaged in every way."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from puna.tokenizer import PieceType, Tokenizer, Vocabulary
from puna.tokenizer.gguf import read_metadata, write_metadata
from puna.tokenizer.json_file import read_json, write_json
from puna.tokenizer.llama2c import read_bin
from puna.tokenizer.sentencepiece_model import read_model, write_model
from puna.tokenizer.vocabulary import VocabularyError, byte_piece, byte_value
from tests.samples import AWKWARD, story_lines

Read = Callable[[bytes], Vocabulary]


def write_bin(vocabulary: Vocabulary) -> bytes:
    """llama2.c's file, as its export.py writes it (Puna only reads these)."""
    out = struct.pack("<i", max(map(len, vocabulary.pieces)))
    names = {1: "\n<s>\n", 2: "\n</s>\n"}
    for token, (piece, score) in enumerate(zip(vocabulary.pieces, vocabulary.scores, strict=True)):
        text = names.get(token, piece).replace("▁", " ").encode()
        out += struct.pack("<fi", score, len(text)) + text
    return out


FILES: dict[str, tuple[Callable[[Vocabulary], bytes], Read]] = {
    "model": (write_model, read_model),
    "json": (write_json, read_json),
    "bin": (write_bin, read_bin),
}


@pytest.mark.parametrize("kind", FILES)
def test_round_trip(kind: str, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    write, read = FILES[kind]
    back = read(write(vocabulary))
    assert (back.pieces, back.types) == (vocabulary.pieces, vocabulary.types)
    again = Tokenizer(back)
    for text in (*AWKWARD, *story_lines(50)):
        assert again.encode(text) == tokenizer.encode(text)
    if kind == "model":
        assert back == vocabulary


def test_gguf_metadata_round_trip(vocabulary: Vocabulary) -> None:
    assert read_metadata(write_metadata(vocabulary)) == vocabulary


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "gpt2", "'gpt2', not 'llama'"),
        ("tokens", [1] * 420, "piece 0 is no text"),
        ("scores", ["x"] * 420, "something else than numbers"),
        ("token_type", [99] * 420, "no piece type 99"),
        ("token_type", [1], "it has 1 items, not 420"),
        ("scores", 5, "it is no array"),
        ("bos_token_id", [1], r"\[1\] is no integer"),
        ("eos_token_id", float("inf"), "inf is no integer"),
        ("eos_token_id", 1 << 30, "outside"),
    ],
)
def test_damaged_gguf_metadata(vocabulary: Vocabulary, key: str, value: Any, message: str) -> None:
    metadata = write_metadata(vocabulary)
    with pytest.raises(ValueError, match=message):
        read_metadata(metadata | {f"tokenizer.ggml.{key}": value})


def test_gguf_metadata_that_lacks_a_key(vocabulary: Vocabulary) -> None:
    metadata = write_metadata(vocabulary)
    del metadata["tokenizer.ggml.scores"]
    with pytest.raises(VocabularyError, match="lacks this key") as caught:
        read_metadata(metadata)
    assert caught.value.field == "tokenizer.ggml.scores"
    with pytest.raises(ValueError, match="holds no tokenizer"):
        read_metadata({"general.architecture": "llama"})


def test_sentencepiece_reads_what_is_written(vocabulary: Vocabulary) -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=write_model(vocabulary))
    assert tuple(library.id_to_piece(list(range(len(vocabulary))))) == vocabulary.pieces
    assert tuple(library.get_score(list(range(len(vocabulary))))) == vocabulary.scores
    assert (library.unk_id(), library.bos_id(), library.eos_id()) == (0, 1, 2)
    assert library.pad_id() == -1


@pytest.mark.parametrize(
    "changes", [{"add_space_prefix": False}, {"remove_extra_spaces": True}], ids=str
)
def test_options_survive_and_act_as_in_sentencepiece(
    vocabulary: Vocabulary, changes: dict[str, bool]
) -> None:
    changed = dataclasses.replace(vocabulary, **changes)
    model = write_model(changed)
    assert read_model(model) == changed
    tokenizer = Tokenizer(changed)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in AWKWARD:
        ids = library.encode(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == library.decode(ids)
    if changed.remove_extra_spaces:
        for write in (write_json, write_metadata):
            with pytest.raises(ValueError, match="normalises text"):
                write(changed)
    else:
        assert read_json(write_json(changed)).add_space_prefix is False
        assert read_metadata(write_metadata(changed)) == changed


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_files_raise_only_value_errors(
    kind: str, damage: str, vocabulary: Vocabulary
) -> None:
    write, read = FILES[kind]
    data = write(vocabulary)
    generator = random.Random(3)
    failures = 0
    for _ in range(400):
        damaged = bytearray(data)
        if damage == "truncate":
            del damaged[generator.randrange(len(data)) :]
        else:
            for _ in range(generator.choice((1, 1, 5))):
                damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        try:
            tokenizer = Tokenizer(read(bytes(damaged)))
            tokenizer.decode(tokenizer.encode("The old llama 12 é"))
        except ValueError:
            failures += 1
    assert failures > (100 if damage == "truncate" else 20)


def test_damaged_json_structures_raise_only_value_errors(vocabulary: Vocabulary) -> None:
    """Every value of the file replaced by one of each other kind, and every key dropped."""
    root = json.loads(write_json(vocabulary))
    root["model"]["vocab"] = {k: v for k, v in root["model"]["vocab"].items() if v < 265}
    root["model"]["merges"] = root["model"]["merges"][:1]
    root["normalizer"] = None
    read_json(json.dumps(root).encode())
    paths = [(), ("model",), ("added_tokens",), ("added_tokens", 0), ("model", "merges", 0)]
    replaced = 0
    for path in paths:
        at: Any = root
        for key in path:
            at = at[key]
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            old = at[key]
            for value in (None, 5, "x", [1], [[]], {"a": {}}, True):
                at[key] = value
                try:
                    read_json(json.dumps(root).encode())
                except ValueError:
                    replaced += 1
            at[key] = old
    assert replaced > 50
    for vocab in ([[]], [["<unk>", 0]], "", {"<unk>": 0.0}, {"<unk>": False}):
        root["model"]["vocab"] = vocab
        with pytest.raises(VocabularyError, match=r"damaged|ids"):
            read_json(json.dumps(root).encode())
    for data in (b"", b"[]", b"5", b"null", b'{"model": []}', b"[" * 100_000):
        with pytest.raises(ValueError, match=r"JSON|damaged"):
            read_json(data)


@pytest.mark.parametrize("missing", [1, 2, 5])
def test_a_model_file_that_lacks_its_last_bytes(vocabulary: Vocabulary, missing: int) -> None:
    with pytest.raises(ValueError, match="truncated"):
        read_model(write_model(vocabulary)[:-missing])


@pytest.mark.parametrize(
    "model", [{"type": "WordPiece"}, {"type": "BPE", "byte_fallback": False}], ids=str
)
def test_other_kinds_of_tokenizer_are_refused(model: dict[str, Any]) -> None:
    root = {"model": {"vocab": {"a": 0}, "merges": []} | model}
    with pytest.raises(ValueError, match="not a SentencePiece-style BPE"):
        read_json(json.dumps(root).encode())


def test_a_unigram_model_is_refused() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(story_lines(50)),
        model_writer=model,
        model_type="unigram",
        vocab_size=60,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="not a byte-pair"):
        read_model(model.getvalue())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pieces": ()}, "0 pieces is not plausible"),
        ({"scores": (0.0,)}, "1 scores"),
        ({"bos_id": 420}, "bos_id 420 is outside"),
        ({"unk_id": -1}, "unk_id -1 is outside"),
        ({"unk_id": 1}, "exactly one unknown piece"),
    ],
    ids=str,
)
def test_inconsistent_vocabularies_are_refused(
    vocabulary: Vocabulary, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(vocabulary, **changes)


def test_byte_fallback_needs_every_byte(vocabulary: Vocabulary) -> None:
    types = list(vocabulary.types)
    types[types.index(PieceType.BYTE)] = PieceType.NORMAL
    with pytest.raises(ValueError, match="255 byte pieces"):
        dataclasses.replace(vocabulary, types=tuple(types))


def test_a_piece_that_comes_twice_is_refused(vocabulary: Vocabulary) -> None:
    pieces = (*vocabulary.pieces[:-1], vocabulary.pieces[-2])
    with pytest.raises(ValueError, match="SentencePiece refuses"):
        Tokenizer(dataclasses.replace(vocabulary, pieces=pieces))


def test_byte_pieces() -> None:
    assert [byte_value(byte_piece(value)) for value in range(256)] == list(range(256))
    assert byte_piece(10) == "<0x0A>"
    for wrong in ("<0x4>", "a", "<0xZZ>", ""):
        with pytest.raises(ValueError):
            byte_value(wrong)


def test_tok512(shared: Path) -> None:
    """The stories model's vocabulary, against llama2.c's algorithm on the file's own bytes."""
    folder = shared / "weights" / "stories260K"
    data = (folder / "tok512.bin").read_bytes()
    vocabulary = read_bin(data)
    assert len(vocabulary) == 512
    assert vocabulary.pieces[:5] == ("<unk>", "<s>", "</s>", "<0x00>", "<0x01>")
    tokenizer = Tokenizer(vocabulary)
    story = (folder / "expected-greedy-200-steps.txt").read_text()
    for text in ("Once upon a time", story, "naïve 🦙  12\n\n", ""):
        ids = tokenizer.encode(text)
        assert ids == _llama2c_encode(data, text)
        assert tokenizer.decode(ids) == text


def _llama2c_encode(data: bytes, text: str) -> list[int]:
    """run.c's `encode`: single characters, then the best-scoring neighbours merge until none do."""
    pieces: list[bytes] = []
    scores = []
    at = 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    ids = []
    for character in " " + text if text else "":
        raw = character.encode()
        ids += [pieces.index(raw)] if raw in pieces else [byte + 3 for byte in raw]
    while True:
        pairs = [pieces[a] + pieces[b] for a, b in itertools.pairwise(ids)]
        merges = [(-scores[pieces.index(p)], i) for i, p in enumerate(pairs) if p in pieces]
        if not merges:
            return ids
        _, first = min(merges)
        ids[first : first + 2] = [pieces.index(pairs[first])]
