"""A corpus tokenized to disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from puna.data.tokens import open_tokens, write_tokens
from puna.tokenizer import Tokenizer
from tests.samples import story_lines


def test_each_document_stands_between_bos_and_eos(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.jsonl"
    stories = story_lines(150)  # more than one batch
    first.write_text("\n--\n".join(stories[:100]))
    second.write_text("".join(json.dumps({"text": text}) + "\n" for text in stories[100:]))
    seen: list[None] = []
    corpus = write_tokens(
        [first, second], tokenizer, tmp_path, separator="--", on_document=lambda: seen.append(None)
    )
    expected = [token for text in stories for token in (1, *tokenizer.encode(text), 2)]
    assert corpus.tokens.tolist() == expected
    assert corpus.tokens.dtype == np.uint16
    manifest = corpus.manifest
    assert manifest.sources == (str(first), str(second))
    assert (manifest.num_documents, manifest.num_tokens) == (150, len(expected))
    assert len(seen) == 150 and manifest.vocab_size == tokenizer.vocab_size
    raw = (tmp_path / "tokens.bin").read_bytes()
    assert manifest.sha256 == hashlib.sha256(raw).hexdigest()
    again = open_tokens(tmp_path)
    assert again.manifest == manifest and np.array_equal(again.tokens, corpus.tokens)


def test_no_text_and_a_file_that_does_not_fit(tmp_path: Path, tokenizer: Tokenizer) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(ValueError, match=r"no text in .*empty\.txt"):
        write_tokens([empty], tokenizer, tmp_path)
    empty.write_text("no longer")
    write_tokens([empty], tokenizer, tmp_path)
    with open(tmp_path / "tokens.bin", "ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="its manifest says"):
        open_tokens(tmp_path)
