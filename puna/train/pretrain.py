"""Pretraining: next-token loss over packed windows of a corpus."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.attention import causal_in_blocks, document_mask, masked
from puna.config import ModelConfig
from puna.data.loader import Loader, batch_history
from puna.data.prefetch import Prefetched
from puna.data.shards import open_shards
from puna.data.text import documents
from puna.data.tokenize import write_shards
from puna.formats.files import atomic_directory, atomic_file
from puna.formats.run_folder import steps_saved
from puna.heads import next_token_logits
from puna.model import Llama, drawn
from puna.parallel.float8 import check_float8
from puna.parallel.layout import (
    Layout,
    check_data,
    check_model,
    check_pieces,
    usual_micro_batch,
)  # fmt: skip
from puna.parallel.place import HANG_TIMEOUT, Place, take_place
from puna.parallel.ranks import check_device
from puna.parallel.watchdog import watched
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import read_model, write_model
from puna.train.log import Record
from puna.train.loop import Settings, train
from puna.train.losses import chunked_next_token_loss_sum, next_token_loss_sum, perplexity
from puna.train.starting import make_trainee

_CONFIG, _TOKENIZER, _DATA = "config.json", "tokenizer.model", "data"


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """A pretraining run as resolved. Batch sizes are in windows of the model's context length.

    `batch_size` is one number, or its history: pairs of the first step and the size from there on.
    `held_out_windows` are kept of each source; `mix` is the weight of each source, by default its
    size; `document_mask` keeps attention inside a document; `shards` is the folder that they are
    in, by default the run's own.
    """

    model: ModelConfig
    settings: Settings
    batch_size: int | tuple[tuple[int, int], ...]
    micro_batch_size: int
    seed: int = 0
    held_out_windows: int = 0
    mix: dict[str, float] | None = None
    document_mask: bool = False
    shards: str | None = None

    def __post_init__(self) -> None:
        batch_history(self.batch_size)
        if self.held_out_windows < 0:
            raise ValueError(f"held_out_windows must be 0 or more, not {self.held_out_windows}")
        check_model(self.layout, self.model, self.settings.schedule)
        # What was before a change may have been another layout's.
        batch_size = self.last_batch_size
        check_data(self.layout, batch_size)
        if self.micro_batch_size < 1 or batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        check_pieces(self.layout, batch_size, self.micro_batch_size, self.settings.schedule)

    @property
    def batch_sizes(self) -> tuple[tuple[int, int], ...]:
        """The history of the batch size, from step 0 on."""
        return batch_history(self.batch_size)

    @property
    def last_batch_size(self) -> int:
        """The size since it last changed."""
        return self.batch_sizes[-1][1]

    @property
    def layout(self) -> Layout:
        """How the run is cut; one process where nothing is said."""
        return Layout.parse(self.settings.parallel)

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
            if isinstance(values["batch_size"], list):
                pairs = ((int(step), int(size)) for step, size in values["batch_size"])
                values["batch_size"] = tuple(pairs)
            return cls(model=model, settings=Settings(**values.pop("settings")), **values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"the run's config does not fit this version: {error}") from None


@dataclass(frozen=True, slots=True)
class Pretrain:
    """The stage (`train.loop.Stage`). A piece is ids (micro_batch_size, context_length + 1).

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
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        attend = causal_in_blocks if mask is None else masked(mask)
        hidden = model(tokens, positions, attend)
        if self.loss_chunk:
            head = network.tok_embeddings if network.output is None else network.output
            return chunked_next_token_loss_sum(hidden, head.weight, targets, chunk=self.loss_chunk)
        return next_token_loss_sum(next_token_logits(network, hidden), targets)

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
        (folder / _TOKENIZER).write_bytes(write_model(vocabulary))
        (folder / _CONFIG).write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def check_shards(config: PretrainConfig, vocabulary: Vocabulary) -> None:
    """ValueError where the config's folder of shards does not fit it, or has too little text."""
    _loader(Path(), config, vocabulary)


def run_config(run: Path, parallel: str | None = None) -> PretrainConfig:
    """The config of a prepared run, with another layout where one is given.

    ValueError if there is none, it is damaged, or the layout does not fit it.
    """
    if not (run / _CONFIG).is_file():
        raise ValueError(f"{run} is not a run: it holds no {_CONFIG}")
    try:
        config = PretrainConfig.from_dict(json.loads((run / _CONFIG).read_text()))
    except ValueError as error:
        raise ValueError(f"{run / _CONFIG}: {error}") from None
    return config if parallel is None else with_layout(config, parallel)


def with_layout(config: PretrainConfig, parallel: str) -> PretrainConfig:
    """The same run cut otherwise. ValueError where it does not divide so.

    Where the pieces of a batch do not fit a rank's share of it, they become smaller.
    """
    settings = dataclasses.replace(config.settings, parallel=parallel)
    layout = Layout.parse(parallel)
    check_data(layout, config.last_batch_size)
    piece = usual_micro_batch(
        layout, config.last_batch_size, settings.schedule, at_most=config.micro_batch_size
    )
    return dataclasses.replace(config, settings=settings, micro_batch_size=piece)


def with_batch_size(
    config: PretrainConfig, step: int, batch_size: int, micro_batch_size: int | None = None
) -> PretrainConfig:
    """The same run with another batch size from `step` on; windows go on where they were.

    Pieces are as large as before where they divide it. ValueError where the size does not fit.
    """
    before = tuple(pair for pair in config.batch_sizes if pair[0] < step)
    if not before or before[-1][1] != batch_size:
        before = (*before, (step, batch_size))
    if micro_batch_size is None:
        micro_batch_size = usual_micro_batch(
            config.layout,
            batch_size,
            config.settings.schedule,
            at_most=config.micro_batch_size,
        )
    return dataclasses.replace(
        config,
        batch_size=before if len(before) > 1 else batch_size,
        micro_batch_size=micro_batch_size,
    )


def change_batch_size(
    run: Path,
    batch_size: int | None,
    micro_batch_size: int | None = None,
    *,
    parallel: str | None = None,
) -> None:
    """Writes into a run's config that its batch, or the pieces of it, have another size from the
    newest checkpoint on; and another layout, where one is given."""
    config = run_config(run, parallel)
    step = max(steps_saved(run), default=0)
    size = config.last_batch_size if batch_size is None else batch_size
    config = with_batch_size(config, step, size, micro_batch_size)
    with atomic_file(run / _CONFIG, overwrite=True) as file:
        file.write((json.dumps(config.to_dict(), indent=2) + "\n").encode())


def check_machine(device: str, float8: bool) -> None:
    """ValueError where this machine lacks the device, or it what float8 needs."""
    check_device(device)
    if float8:
        check_float8(torch.device(device))


def pretrain(
    run: Path, *, parallel: str | None = None, hang_timeout: float = HANG_TIMEOUT, **options: Any
) -> bool:
    """Starts or continues a prepared run; `options` are those of `train.loop.train`.

    With a layout, each of its processes calls this; `parallel` is another than the run's own. Where
    one of several does not move for `hang_timeout` seconds (0: however long), the others name it
    and end (`parallel.watchdog`); where one is gone they raise a LostError that names it. Returns
    False if a signal stopped it early.
    """
    config = run_config(run, parallel)
    settings = config.settings
    check_machine(settings.device, settings.float8)
    with contextlib.ExitStack() as stack:
        place = None
        if settings.parallel:
            place = take_place(config.layout, settings.device, hang_timeout)
            if config.layout.num_ranks > 1:
                watch = watched(place.rank, config.layout.num_ranks, timeout=hang_timeout)
                options["on_phase"] = stack.enter_context(watch).enter
        vocabulary = read_model((run / _TOKENIZER).read_bytes())
        loader = _loader(run, config, vocabulary, place)
        batch = stack.enter_context(contextlib.closing(Prefetched(loader.batch)))
        stage = Pretrain(
            loader,
            batch,
            config.micro_batch_size,
            vocabulary.bos_id,
            config.document_mask,
            settings.loss_chunk,
        )
        # Weights that a checkpoint replaces need not be drawn; the first rank says if one does.
        resumed = bool(steps_saved(run))
        if place is not None:
            resumed = place.everyone(resumed)[0]
        weights = None if resumed else functools.partial(_drawn, config)
        trainee = make_trainee(config.model, settings, stage, place, weights)
        return train(trainee, stage, settings, run, vocabulary, **options)


def _drawn(config: PretrainConfig, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """First weights: all of them, since each takes its numbers after those before it."""
    return drawn(config.model, torch.Generator().manual_seed(config.seed))


def _loader(
    run: Path, config: PretrainConfig, vocabulary: Vocabulary, place: Place | None = None
) -> Loader:
    return Loader(
        open_shards(run / _DATA if config.shards is None else Path(config.shards), vocabulary),
        context_length=config.model.context_length,
        batch_size=config.batch_size,
        seed=config.seed,
        mix=config.mix,
        num_held_out=config.held_out_windows,
        rank=place.data_rank if place else 0,
        num_ranks=config.layout.num_data_ranks if place else 1,
    )
