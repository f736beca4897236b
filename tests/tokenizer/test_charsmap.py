"""Text normalisation from a stranger: what SentencePiece trains is taken, damage never walked."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from puna.tokenizer import Tokenizer
from puna.tokenizer.charsmap import charsmap_problem
from puna.tokenizer.sentencepiece_model import read_model, write_model
from tests.samples import AWKWARD, story_lines

WALK = """
import sys
from puna.tokenizer import Tokenizer
from puna.tokenizer.sentencepiece_model import read_model
tokenizer = Tokenizer(read_model(open(sys.argv[1], "rb").read()))
for point in range(0x20, 0x3000):
    tokenizer.encode("a" + chr(point) + "b")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model whose normalisation is SentencePiece's usual one, NFKC."""
    prefix = tmp_path_factory.mktemp("nfkc") / "a"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(story_lines(200)),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=350,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    return prefix.with_suffix(".model").read_bytes()


def test_what_sentencepiece_compiles_is_sound(model: bytes) -> None:
    vocabulary = read_model(model)
    assert len(vocabulary.charsmap) > 100_000
    assert charsmap_problem(vocabulary.charsmap) == ""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in (*AWKWARD, "ﬁne ½ ①"):
        assert Tokenizer(vocabulary).encode(text) == theirs.encode(text)


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, struct.pack("<I", 1 << 31), "a trie of 2147483648 bytes"),
        (0, struct.pack("<I", 1028), "a trie of 1028 bytes"),
        (4, struct.pack("<I", 0x7FFFFC00), "a step leaves its trie"),
        (-1, b"x", "has no end"),
    ],
)
def test_damage_is_named(model: bytes, at: int, new: bytes, message: str) -> None:
    charsmap = bytearray(read_model(model).charsmap)
    at %= len(charsmap)
    charsmap[at : at + len(new)] = new
    assert message in charsmap_problem(bytes(charsmap))


def test_replacements_after_the_end(model: bytes) -> None:
    charsmap = read_model(model).charsmap
    trie = int.from_bytes(charsmap[:4], "little")
    assert "after its end" in charsmap_problem(charsmap[: 4 + trie] + b"\0")


def test_no_damage_crashes_the_library(model: bytes, tmp_path: Path) -> None:
    """Of what is not refused, all texts are encoded, in a process of its own."""
    charsmap = read_model(model).charsmap
    begin = model.index(charsmap)
    generator = random.Random(0)
    taken = refused = 0
    for _ in range(200):
        damaged = bytearray(charsmap)
        for _ in range(generator.choice((1, 4, 40))):
            at = generator.randrange(4, len(damaged))
            damaged[at] ^= 1 << generator.randrange(8)
        if charsmap_problem(bytes(damaged)):
            refused += 1
            continue
        taken += 1
        if taken <= 6:
            path = tmp_path / "a.model"
            path.write_bytes(model[:begin] + damaged + model[begin + len(damaged) :])
            subprocess.run([sys.executable, "-c", WALK, str(path)], check=True, timeout=60)
    assert taken > 6 and refused > 6


def test_a_damaged_map_is_no_vocabulary(model: bytes) -> None:
    charsmap = read_model(model).charsmap
    damaged = model.replace(charsmap[:4], bytes(4), 1)
    with pytest.raises(ValueError, match="normalisation is damaged"):
        read_model(damaged)
    assert read_model(write_model(read_model(model))) == read_model(model)
