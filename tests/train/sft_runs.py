"""Small fine-tuning runs, and what each rank of one does."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from puna.chat import LLAMA2_TEMPLATE
from puna.config import ModelConfig
from puna.formats import save_checkpoint
from puna.formats.network import as_checkpoint
from puna.lora import LoRASettings
from puna.parallel.place import take_place
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.loop import Settings, train
from puna.train.run_config import read_vocabulary
from puna.train.running import Share
from puna.train.sft import SFTConfig, first_weights, make_stage, prepare, read_data, run_config
from puna.train.starting import make_trainee
from tests.samples import random_model, story_lines

MODEL = ModelConfig(32, 2, 4, 2, 64, vocab_size=420, context_length=64)
SETTINGS = Settings(steps=6, learning_rate=3e-3, warmup_steps=1, dtype="fp32", checkpoint_every=2)


def write_dialogs(path: Path, count: int = 60) -> Path:
    """Questions about sentences, some of several turns and some not all learned."""
    records = []
    for number, line in enumerate(story_lines(count)):
        words = line.split()
        messages = [
            {"role": "user", "content": f"Who? {line}"},
            {"role": "assistant", "content": " ".join(words[:2]), "weight": number % 3 and 1},
        ]
        if number % 3 != 1:
            messages += [
                {"role": "user", "content": "When?"},
                {"role": "assistant", "content": " ".join(words[-2:])},
            ]
        records.append({"messages": messages})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def new_run(
    folder: Path,
    vocabulary: Vocabulary,
    *,
    name: str = "run",
    lora: LoRASettings | None = None,
    **settings: Any,
) -> Path:
    """A prepared run in `folder`, from a model of random weights."""
    folder.mkdir(exist_ok=True)
    start = folder / "start"
    if not start.exists():
        checkpoint = as_checkpoint(random_model(MODEL), start, vocabulary)
        save_checkpoint(checkpoint, start, "huggingface")
    data = read_data(
        [write_dialogs(folder / "data.jsonl")], Tokenizer(vocabulary), context_length=64, seed=3
    )
    config = SFTConfig(
        MODEL, dataclasses.replace(SETTINGS, **settings), 8, 2, 3, context_length=64,
        start=str(start), lora=lora,
    )  # fmt: skip
    prepare(folder / name, config, data, vocabulary)
    return folder / name


def trained_by_ranks(run: Path, line: str) -> None:
    """As `train.running` does it, but that the ranks have met already."""
    config = run_config(run, line)
    place = take_place(config.layout, "cpu")
    vocabulary = read_vocabulary(run)
    num_ranks = config.layout.num_data_ranks
    stage = make_stage(run, config, Share(vocabulary, place.data_rank, num_ranks, lambda b: b))
    weights = functools.partial(first_weights, config)
    trainee = make_trainee(config.model, config.settings, stage, place, weights)
    template = LLAMA2_TEMPLATE
    assert train(trainee, stage, config.settings, run, vocabulary, chat_template=template)
