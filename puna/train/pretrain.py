"""Pretraining: next-token loss over packed windows of a corpus."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.attention import Attend, causal, document_masked
from puna.config import ModelConfig
from puna.data.loader import Loader
from puna.data.prefetch import Prefetched
from puna.data.shards import open_shards
from puna.data.text import documents
from puna.data.tokenize import write_shards
from puna.formats.files import atomic_directory
from puna.formats.network import load_model
from puna.heads import next_token_logits
from puna.model import Llama, initialize
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import read_model, write_model
from puna.train import checkpoints
from puna.train.loop import Record, Settings, train
from puna.train.losses import next_token_loss_sum

_CONFIG, _TOKENIZER, _DATA = "config.json", "tokenizer.model", "data"


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """A pretraining run as resolved. Batch sizes are in windows of the model's context length.

    `held_out_windows` are kept of each source; `mix` is the weight of each source, by default its
    size; `document_mask` keeps attention inside a document; `shards` is the folder that they are
    in, by default the run's own.
    """

    model: ModelConfig
    settings: Settings
    batch_size: int
    micro_batch_size: int
    seed: int = 0
    held_out_windows: int = 0
    mix: dict[str, float] | None = None
    document_mask: bool = False
    shards: str | None = None

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

    loader: Loader
    batch: Callable[[int], NDArray[np.int64]]  # the loader's, perhaps made ahead
    micro_batch_size: int
    bos_id: int
    document_mask: bool = False

    def micro_batches(self, step: int) -> list[Tensor]:
        return list(torch.from_numpy(self.batch(step)).split(self.micro_batch_size))

    def num_tokens(self, batch: Tensor) -> int:
        return batch[:, 1:].numel()

    def loss(self, model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
        tokens, targets = batch[:, :-1], batch[:, 1:]
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        attend: Attend = causal
        if self.document_mask:
            # Text cannot spell BOS, so each one begins a document. Rotary angles are relative:
            # positions need not begin anew with it.
            attend = document_masked((tokens == self.bos_id).cumsum(dim=1))
        hidden = model(tokens, positions, attend)
        return next_token_loss_sum(next_token_logits(network, hidden), targets)

    def evaluate(self, loss: Callable[[Tensor], Tensor]) -> Record:
        """Mean loss per held-out token, in nats, and of each source where there are several.

        Nothing where no windows are held out.
        """
        total: dict[str, float] = {}
        count: dict[str, int] = {}
        for source, windows in self.loader.held_out().items():
            batches = torch.from_numpy(windows).split(self.micro_batch_size)
            count[source] = sum(self.num_tokens(batch) for batch in batches)
            total[source] = sum(loss(batch).item() for batch in batches) if len(windows) else 0.0
        if not sum(count.values()):
            return {}
        record: Record = {"held_out_loss": sum(total.values()) / sum(count.values())}
        if len(total) > 1:
            record["held_out_loss_by_source"] = {name: total[name] / count[name] for name in total}
        return record


def prepare(
    run: Path,
    config: PretrainConfig,
    paths: Sequence[Path],
    vocabulary: Vocabulary,
    *,
    separator: str | None = None,
    on_document: Callable[[], None] = lambda: None,
) -> None:
    """Makes the run's folder: config, tokenizer and, from `paths`, tokenized corpus.

    There are no `paths` where the config names a folder of shards. Nothing is left if it fails.
    """
    if config.model.vocab_size != len(vocabulary):
        raise ValueError(
            f"the model has {config.model.vocab_size} rows for a tokenizer of "
            f"{len(vocabulary)} pieces"
        )
    with atomic_directory(run) as folder:
        if config.shards is None:
            names = ", ".join(path.name for path in paths)
            texts = (documents(path, separator=separator) for path in paths)
            manifest = write_shards(
                itertools.chain.from_iterable(texts),
                vocabulary,
                folder / _DATA,
                source=names,
                licence="unknown",
                on_document=on_document,
            )
            if not manifest.num_documents:
                raise ValueError(f"no text in {names}")
        _loader(folder, config, vocabulary)  # is there enough text?
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
    loader = _loader(run, config, vocabulary)
    resumed = None
    if checkpoints.steps_saved(run):
        resumed = checkpoints.newest(run)
        model = load_model(resumed[0], device=config.settings.device)
    else:
        model = Llama(config.model)
        initialize(model, torch.Generator().manual_seed(config.seed))
        model.to(config.settings.device)
    on_start(resumed[1].step if resumed else 0)
    with contextlib.closing(Prefetched(loader.batch)) as batch:
        stage = Pretrain(
            loader, batch, config.micro_batch_size, vocabulary.bos_id, config.document_mask
        )
        return train(model, stage, config.settings, run, vocabulary, resume=resumed, **options)


def _loader(run: Path, config: PretrainConfig, vocabulary: Vocabulary) -> Loader:
    return Loader(
        open_shards(run / _DATA if config.shards is None else Path(config.shards), vocabulary),
        context_length=config.model.context_length,
        batch_size=config.batch_size,
        seed=config.seed,
        mix=config.mix,
        num_held_out=config.held_out_windows,
    )
