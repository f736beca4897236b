"""Small pretraining runs."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch

from puna.config import ModelConfig
from puna.formats.manifest import read_manifest
from puna.tokenizer import Vocabulary
from puna.train.checkpoints import (
    RunState,
    checkpoint_path,
    saved_tensors,
    steps_saved,
    verify,
)
from puna.train.log import read_log
from puna.train.loop import Settings
from puna.train.pretrain import PretrainConfig, prepare
from tests.samples import story_lines

MODEL = ModelConfig(32, 2, 4, 2, 48, vocab_size=420, context_length=16)
SETTINGS = Settings(steps=12, learning_rate=1e-2, warmup_steps=3, dtype="fp32", checkpoint_every=3)


def run_config(batch_size: int = 4, micro_batch_size: int = 4, **settings: Any) -> PretrainConfig:
    return PretrainConfig(
        MODEL,
        dataclasses.replace(SETTINGS, **settings),
        batch_size,
        micro_batch_size,
        seed=3,
        held_out_windows=3,
    )


def new_run(folder: Path, vocabulary: Vocabulary, config: PretrainConfig) -> Path:
    """A prepared run in `folder` over a few hundred sentences."""
    folder.mkdir(exist_ok=True)
    text = folder / "text.txt"
    text.write_text("\n".join(story_lines(300)), encoding="utf-8")
    prepare(folder / "run", config, [text], vocabulary, separator=None)
    return folder / "run"


def losses(run: Path) -> dict[int, float]:
    """Step -> loss, as the log has them; each step once."""
    records = read_log(run / "log.jsonl")
    found = {record["step"]: record["loss"] for record in records}
    assert len(found) == len(records)
    return found


def newest(run: Path) -> tuple[Path, RunState]:
    """The newest checkpoint without damage, as a resume would take it."""
    for step in reversed(steps_saved(run)):
        path = checkpoint_path(run, step)
        with contextlib.suppress(ValueError):
            return path, verify(path)
    raise ValueError("there is none")


def weights(checkpoint: Path) -> bytes:
    """All weights and moments of a checkpoint, however it is cut."""
    saved = saved_tensors(checkpoint, read_manifest(checkpoint))
    return b"".join(saved[name].stored().read().tobytes() for name in sorted(saved))


def first_batches(model_run: Path, count: int) -> list[torch.Tensor]:
    """The batches of the first steps, cut out of the tokens that the run trains on."""
    from puna.data.loader import Loader
    from puna.data.shards import open_shards

    loader = Loader(
        open_shards(model_run / "data"),
        context_length=MODEL.context_length,
        batch_size=4,
        seed=3,
        num_held_out=3,
    )
    return [torch.from_numpy(loader.batch(step)) for step in range(count)]
