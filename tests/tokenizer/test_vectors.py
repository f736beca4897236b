"""llama.cpp's encode vectors for Llama's vocabulary, through every file that can hold it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from puna.tokenizer import Tokenizer, Vocabulary
from puna.tokenizer.gguf import read_metadata, write_metadata
from puna.tokenizer.json_file import read_json, write_json
from puna.tokenizer.sentencepiece_model import read_model, write_model

_SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def vectors(shared: Path) -> list[tuple[str, list[int]]]:
    base = shared / "tokenizer" / "ggml-vocab-llama-spm.gguf"
    texts = base.with_suffix(".gguf.inp").read_bytes().decode().split(_SEPARATOR)
    lines = base.with_suffix(".gguf.out").read_text().split("\n")
    expected = [[int(number) for number in line.split()] for line in lines]
    assert len(texts) == len(expected) == 47
    return list(zip(texts, expected, strict=True))


@pytest.fixture(scope="module")
def llama(shared: Path) -> Vocabulary:
    return read_model((shared / "tokenizer" / "tokenizer.model").read_bytes())


@pytest.fixture(scope="module")
def llama_json(llama: Vocabulary) -> bytes:
    return write_json(llama)


def _assert_encodes(tokenizer: Tokenizer, vectors: list[tuple[str, list[int]]]) -> None:
    for text, ids in vectors:
        assert tokenizer.encode(text) == ids, text


def test_model_file(llama: Vocabulary, vectors: list[tuple[str, list[int]]]) -> None:
    _assert_encodes(Tokenizer(llama), vectors)
    assert (len(llama), llama.unk_id, llama.bos_id, llama.eos_id) == (32000, 0, 1, 2)


def test_model_file_written_again(llama: Vocabulary) -> None:
    assert read_model(write_model(llama)) == llama


def test_json_file_read_back(llama_json: bytes, vectors: list[tuple[str, list[int]]]) -> None:
    _assert_encodes(Tokenizer(read_json(llama_json)), vectors)


def test_json_file_in_the_tokenizers_library(
    llama_json: bytes, vectors: list[tuple[str, list[int]]]
) -> None:
    library = tokenizers.Tokenizer.from_str(llama_json.decode())
    for text, ids in vectors:
        assert library.encode(text, add_special_tokens=False).ids == ids, text
        assert library.encode(text).ids == [1, *ids]


def test_gguf_metadata(llama: Vocabulary, vectors: list[tuple[str, list[int]]]) -> None:
    assert read_metadata(write_metadata(llama)) == llama
    _assert_encodes(Tokenizer(read_metadata(write_metadata(llama))), vectors)
