"""Pretraining: next-token loss over packed windows of a corpus."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.attention import document_mask
from puna.data.loader import Loader
from puna.data.shards import ShardSet, open_shards
from puna.data.text import documents
from puna.data.tokenize import write_shards
from puna.formats.files import atomic_directory
from puna.model import Llama, drawn
from puna.tokenizer import Vocabulary
from puna.train.log import Record
from puna.train.losses import perplexity
from puna.train.run_config import RunConfig, read_config, write_run
from puna.train.running import Share, run_stage
from puna.train.window_loss import head_loss_sum, hidden_states

_DATA = "data"


@dataclass(frozen=True, slots=True)
class PretrainConfig(RunConfig):
    """A pretraining run as resolved. Batch sizes are in windows of the model's context length.

    `held_out_windows` are kept of each source; `mix` is the weight of each source, by default its
    size; `document_mask` keeps attention inside a document; `shards` is the folder that they are
    in, by default the run's own.
    """

    held_out_windows: int = 0
    mix: dict[str, float] | None = None
    document_mask: bool = False
    shards: str | None = None

    stage = "pretrain"

    def __post_init__(self) -> None:
        if self.held_out_windows < 0:
            raise ValueError(f"held_out_windows must be 0 or more, not {self.held_out_windows}")
        RunConfig.__post_init__(self)


@dataclass(frozen=True, slots=True)
class Pretrain:
    """The stage (`contracts.Stage`). A piece is ids (micro_batch_size, context_length + 1).

    Data-parallel rank `rank` of `num_ranks` gets its share of each batch, which is the same for
    any number of them.
    """

    loader: Loader
    batch: Callable[[int], NDArray[np.int64]]  # the loader's, perhaps made ahead
    micro_batch_size: int
    bos_id: int
    document_mask: bool = False
    loss_chunk: int = 0

    def micro_batches(self, position: int) -> list[Tensor]:
        return list(torch.from_numpy(self.batch(position)).split(self.micro_batch_size))

    def num_tokens(self, batch: Tensor) -> int:
        return batch[:, 1:].numel()

    def windows(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens = batch[:, :-1]
        if not self.document_mask:
            return tokens, batch[:, 1:], None
        # Text cannot spell BOS, so each one begins a document. Rotary angles are relative:
        # positions need not begin anew with it.
        return tokens, batch[:, 1:], document_mask((tokens == self.bos_id).cumsum(dim=1))

    def loss(self, model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
        tokens, targets, mask = self.windows(batch)
        hidden = hidden_states(model, tokens, mask)
        return head_loss_sum(network, hidden, targets, chunk=self.loss_chunk)

    def evaluate(self, losses: Callable[[Sequence[Tensor]], list[float]]) -> Record:
        """Mean loss per held-out token, in nats, and perplexity; of each source where there are
        several.

        Nothing where no windows are held out.
        """
        pieces: list[tuple[str, Tensor]] = [
            (source, batch)
            for source, windows in self.loader.held_out().items()
            if len(windows)
            for batch in torch.from_numpy(windows).split(self.micro_batch_size)
        ]
        total: dict[str, float] = collections.defaultdict(float)
        count: dict[str, int] = collections.defaultdict(int)
        for (source, batch), loss in zip(pieces, losses([b for _, b in pieces]), strict=True):
            total[source] += loss
            count[source] += self.num_tokens(batch)
        if not count:
            return {}
        mean = sum(total.values()) / sum(count.values())
        record: Record = {"held_out_loss": mean, "held_out_perplexity": perplexity(mean)}
        if len(total) > 1:
            by_source = {name: total[name] / count[name] for name in total}
            record["held_out_loss_by_source"] = by_source
            record["held_out_perplexity_by_source"] = {
                name: perplexity(loss) for name, loss in by_source.items()
            }
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
        write_run(folder, config, vocabulary)


def check_shards(config: PretrainConfig, vocabulary: Vocabulary) -> None:
    """ValueError where the config's folder of shards does not fit it, or has too little text."""
    _loader(Path(), config, vocabulary)


def run_config(run: Path, parallel: str | None = None) -> PretrainConfig:
    """The config of a prepared run, as `run_config.read_config`."""
    return read_config(run, PretrainConfig, parallel)


def pretrain(run: Path, *, parallel: str | None = None, **options: Any) -> bool:
    """Starts or continues a prepared run; `options` are those of `running.run_stage`, `parallel`
    another layout than the run's own. Returns False if a signal stopped it early."""
    config = run_config(run, parallel)

    def make_stage(share: Share) -> Pretrain:
        shards = _shards(run, config, share.vocabulary)
        shards.verify_all(rank=share.rank, num_ranks=share.num_ranks, on_shard=share.on_check)
        loader = _loader(run, config, share.vocabulary, share.rank, share.num_ranks)
        return Pretrain(
            loader,
            share.ahead(loader.batch),
            config.micro_batch_size,
            share.vocabulary.bos_id,
            config.document_mask,
            config.settings.loss_chunk,
        )

    return run_stage(run, config, make_stage, functools.partial(_drawn, config), **options)


def _drawn(config: PretrainConfig, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """First weights: all of them, since each takes its numbers after those before it."""
    return drawn(config.model, torch.Generator().manual_seed(config.seed))


def _shards(run: Path, config: PretrainConfig, vocabulary: Vocabulary) -> ShardSet:
    return open_shards(run / _DATA if config.shards is None else Path(config.shards), vocabulary)


def _loader(
    run: Path, config: PretrainConfig, vocabulary: Vocabulary, rank: int = 0, num_ranks: int = 1
) -> Loader:
    return Loader(
        _shards(run, config, vocabulary),
        context_length=config.model.context_length,
        batch_size=config.batch_size,
        seed=config.seed,
        mix=config.mix,
        num_held_out=config.held_out_windows,
        rank=rank,
        num_ranks=num_ranks,
    )
