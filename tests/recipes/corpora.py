"""A corpus as `puna data build` leaves it, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

from puna.data.shards import ShardWriter, join_shards
from puna.tokenizer import Tokenizer, Vocabulary
from puna.tokenizer.sentencepiece_model import write_model
from tests.samples import story_lines

MIX = {"books": 0.75, "web": 0.25}


def new_corpus(folder: Path, vocabulary: Vocabulary, *, lines: int = 300) -> Path:
    """A corpus of two sources in `folder`: a sixth of the lines are of books."""
    encode, stories = Tokenizer(vocabulary).encode, story_lines(lines)
    tokens = folder / "tokens"
    for source, texts in (("web", stories[lines // 6 :]), ("books", stories[: lines // 6])):
        with ShardWriter(tokens / source, vocabulary, source=source, licence="CC0-1.0") as writer:
            for text in texts:
                writer.add(encode(text))
    join_shards(tokens, ["web", "books"])
    (tokens / "mix.json").write_text(json.dumps(MIX))
    (folder / "tokenizer.model").write_bytes(write_model(vocabulary))
    return folder
