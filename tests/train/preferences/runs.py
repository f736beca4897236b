"""Small runs on pairs, whose answers a tiny model can tell apart."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from puna.config import ModelConfig
from puna.data.preferences import RATINGS
from puna.formats import huggingface
from puna.formats.network import as_checkpoint
from puna.tokenizer import Vocabulary
from tests.samples import random_model, story_lines

MODEL = ModelConfig(32, 2, 4, 2, 48, vocab_size=420, context_length=96)


def write_start(folder: Path, vocabulary: Vocabulary, **changes: Any) -> Path:
    """A model to begin from, in a new folder."""
    values = MODEL.to_dict() | changes
    model = random_model(ModelConfig.from_dict(values))
    huggingface.write(as_checkpoint(model, folder, vocabulary), folder)
    return folder


def write_pairs(path: Path, count: int, seed: int = 0, **fields: Any) -> Path:
    """Comparisons whose better answers are about llamas, and whose worse about nobody."""
    generator = random.Random(seed)
    good, bad = (
        [line for line in story_lines(600) if line.startswith(who)]
        for who in ("The old llama", "Nobody")
    )
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            record = {
                "prompt": [{"role": "user", "content": f"Story {number // 2}?"}],
                "chosen": [{"role": "assistant", "content": generator.choice(good)}],
                "rejected": [{"role": "assistant", "content": generator.choice(bad)}],
                "rating": RATINGS[number % 4],
            }
            file.write(json.dumps(record | fields) + "\n")
    return path
