"""Pretraining: next-token loss over packed windows of a corpus."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.attention import causal
from puna.config import ModelConfig
from puna.data.packing import PackedBatches
from puna.data.tokens import open_tokens, write_tokens
from puna.formats.files import atomic_directory
from puna.formats.network import load_model
from puna.heads import next_token_logits
from puna.model import Llama, initialize
from puna.tokenizer import Tokenizer, Vocabulary
from puna.tokenizer.sentencepiece_model import read_model, write_model
from puna.train import checkpoints
from puna.train.loop import Record, Settings, train
from puna.train.losses import next_token_loss_sum

_CONFIG, _TOKENIZER, _DATA = "config.json", "tokenizer.model", "data"


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """A pretraining run as resolved. Batch sizes are in windows of the model's context length."""

    model: ModelConfig
    settings: Settings
    batch_size: int
    micro_batch_size: int
    seed: int = 0
    held_out_windows: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {self.batch_size}")
        if self.held_out_windows < 0:
            raise ValueError(f"held_out_windows must be 0 or more, not {self.held_out_windows}")
        if self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )

    def to_dict(self) -> dict[str, Any]:
        return {"stage": "pretrain"} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainConfig:
        """The inverse of `to_dict`; unknown keys and other stages are ValueErrors."""
        values = dict(values)
        if values.pop("stage", None) != "pretrain":
            raise ValueError("this is not the config of a pretraining run")
        try:
            model = ModelConfig.from_dict(values.pop("model"))
            return cls(model=model, settings=Settings(**values.pop("settings")), **values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"the run's config does not fit this version: {error}") from None


@dataclass(frozen=True, slots=True)
class Pretrain:
    """The stage (`train.loop.Stage`). A piece is ids (micro_batch_size, context_length + 1)."""

    batches: PackedBatches
    micro_batch_size: int

    def micro_batches(self, step: int) -> list[Tensor]:
        return list(torch.from_numpy(self.batches.batch(step)).split(self.micro_batch_size))

    def num_tokens(self, batch: Tensor) -> int:
        return batch[:, 1:].numel()

    def loss(self, model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
        tokens, targets = batch[:, :-1], batch[:, 1:]
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        hidden = model(tokens, positions, causal)
        return next_token_loss_sum(next_token_logits(network, hidden), targets)

    def evaluate(self, loss: Callable[[Tensor], Tensor]) -> Record:
        """Mean loss per held-out token, in nats; nothing where no windows are held out."""
        total, count = 0.0, 0
        for windows in self.batches.held_out():
            for batch in torch.from_numpy(windows).split(self.micro_batch_size):
                total += loss(batch).item()
                count += self.num_tokens(batch)
        return {"held_out_loss": total / count} if count else {}


def prepare(
    run: Path,
    config: PretrainConfig,
    paths: Sequence[Path],
    vocabulary: Vocabulary,
    *,
    separator: str | None = None,
    on_document: Callable[[], None] = lambda: None,
) -> None:
    """Makes the run's folder: config, tokenizer and tokenized corpus. Nothing if it fails."""
    if config.model.vocab_size != len(vocabulary):
        raise ValueError(
            f"the model has {config.model.vocab_size} rows for a tokenizer of "
            f"{len(vocabulary)} pieces"
        )
    with atomic_directory(run) as folder:
        (folder / _DATA).mkdir()
        corpus = write_tokens(
            paths,
            Tokenizer(vocabulary),
            folder / _DATA,
            separator=separator,
            on_document=on_document,
        )
        _batches(config, corpus.tokens)  # is there enough text?
        (folder / _TOKENIZER).write_bytes(write_model(vocabulary))
        (folder / _CONFIG).write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def run_config(run: Path) -> PretrainConfig:
    """The config of a prepared run; ValueError if there is none or it is damaged."""
    if not (run / _CONFIG).is_file():
        raise ValueError(f"{run} is not a run: it holds no {_CONFIG}")
    try:
        return PretrainConfig.from_dict(json.loads((run / _CONFIG).read_text()))
    except ValueError as error:
        raise ValueError(f"{run / _CONFIG}: {error}") from None


def pretrain(
    run: Path, *, on_start: Callable[[int], None] = lambda step: None, **options: Any
) -> bool:
    """Starts or continues a prepared run; `options` are those of `train.loop.train`.

    `on_start` gets the number of steps done before. Returns False if a signal stopped it early.
    """
    config = run_config(run)
    vocabulary = read_model((run / _TOKENIZER).read_bytes())
    stage = Pretrain(_batches(config, open_tokens(run / _DATA).tokens), config.micro_batch_size)
    resumed = None
    if checkpoints.steps_saved(run):
        resumed = checkpoints.newest(run)
        model = load_model(resumed[0], device=config.settings.device)
    else:
        model = Llama(config.model)
        initialize(model, torch.Generator().manual_seed(config.seed))
        model.to(config.settings.device)
    on_start(resumed[1].step if resumed else 0)
    return train(model, stage, config.settings, run, vocabulary, resume=resumed, **options)


def _batches(config: PretrainConfig, tokens: Any) -> PackedBatches:
    return PackedBatches(
        tokens,
        context_length=config.model.context_length,
        batch_size=config.batch_size,
        seed=config.seed,
        num_held_out=config.held_out_windows,
    )
