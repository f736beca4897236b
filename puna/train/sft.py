"""Supervised fine-tuning: next-token loss on the answers of dialogs (arXiv 2307.09288, 3.1)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.attention import document_mask
from puna.chat import LLAMA2_TEMPLATE
from puna.config import ModelConfig
from puna.data.dialogs import EncodedDialogs, Skipped, encode
from puna.data.instructions import dialogs
from puna.data.packing import Packs
from puna.data.permutation import Permutation
from puna.formats import Checkpoint
from puna.formats.files import atomic_directory
from puna.kernels.layouts import RUN
from puna.lora import LoRASettings
from puna.model import Llama
from puna.plan.layout import check_model
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.log import Record
from puna.train.loop import Settings
from puna.train.losses import perplexity
from puna.train.run_config import RunConfig, read_config, write_run
from puna.train.running import Share, run_stage
from puna.train.starting import lora_network, open_start, start_weights, weights_digest
from puna.train.window_loss import head_loss_sum, hidden_states

_TRAINED, _HELD_OUT = "dialogs", "held_out"  # folders of the run


@dataclass(frozen=True, slots=True)
class SFTConfig(RunConfig):
    """A fine-tuning run as resolved. Batches are of windows of `context_length` positions, packed
    with dialogs; `start` is the path of the model that it begins from; with `lora` pairs are
    trained beside that, in one process, and `start_digest` is what its weights are known by."""

    context_length: int = 0
    start: str = ""
    start_digest: str = ""
    lora: LoRASettings | None = None

    stage = "sft"

    def opened_by(self, checkpoint: Path) -> str:
        if self.lora is None:
            return RunConfig.opened_by(self, checkpoint)
        return f"--model {self.start} --lora {checkpoint}"

    def __post_init__(self) -> None:
        if not 2 <= self.context_length <= self.model.context_length:
            raise ValueError(
                f"a window of {self.context_length} tokens: the model's context has "
                f"{self.model.context_length}"
            )
        RunConfig.__post_init__(self)
        lora: object = self.lora
        if isinstance(lora, Mapping):  # out of JSON
            object.__setattr__(self, "lora", LoRASettings(**lora))
        if self.lora is not None:
            _check_lora(self.lora, self.model, self.settings)
        windowed = replace(self.model, context_length=self.context_length)
        check_model(self.layout, windowed, self.settings.schedule)


@dataclass(frozen=True, slots=True)
class Data:
    """Dialogs to train on and to evaluate on, and what was left out of both."""

    trained: EncodedDialogs
    held_out: EncodedDialogs
    skipped: Skipped


@dataclass(frozen=True, slots=True)
class SFT:
    """The stage (`contracts.Stage`). A piece is windows of `data.packing` (B, 3, T): ids, targets
    and the number of each token's dialog."""

    batch: Callable[[int], NDArray[np.int64]]
    held_out: NDArray[np.int64]
    micro_batch_size: int
    loss_chunk: int = 0

    def micro_batches(self, position: int) -> list[Tensor]:
        return list(torch.from_numpy(self.batch(position)).split(self.micro_batch_size))

    def num_tokens(self, batch: Tensor) -> int:
        return int((batch[:, 1] >= 0).sum())

    def num_positions(self, batch: Tensor) -> int:
        return int((batch[:, 2] > 0).sum())

    def windows(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens, targets, documents = batch.unbind(1)
        # Rotary angles are relative: positions need not begin anew with a dialog.
        return tokens, targets, document_mask(documents)

    def loss(self, model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
        tokens, targets, mask = self.windows(batch)
        hidden = hidden_states(model, tokens, mask)
        # Logits of what is learned alone: prompts and padding need none.
        learned = targets >= 0
        return head_loss_sum(
            network, hidden[learned][None], targets[learned][None], chunk=self.loss_chunk
        )

    def evaluate(self, losses: Callable[[Sequence[Tensor]], list[float]]) -> Record:
        """Mean loss per learned token of the held-out dialogs, in nats, and perplexity; nothing
        where none are held out."""
        pieces = torch.from_numpy(self.held_out).split(self.micro_batch_size)
        if not len(self.held_out):
            return {}
        mean = sum(losses(pieces)) / sum(map(self.num_tokens, pieces))
        return {"held_out_loss": mean, "held_out_perplexity": perplexity(mean)}


def read_data(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    seed: int,
    num_held_out: int | None = None,
    held_out_paths: Sequence[Path] = (),
    too_long: str = "skip",
    on_dialog: Callable[[], None] = lambda: None,
) -> Data:
    """Reads instruction files (`data.instructions`); a dialog takes `context_length` tokens at
    most, and what happens to longer ones is `too_long` of `data.dialogs`.

    Held out are the dialogs of `held_out_paths`, or without these `num_held_out` drawn by `seed`:
    by default a twentieth, at most 64 (*ours*). None that is equal to one of them is trained on.
    ValueError where none is left to train on.
    """
    read = functools.partial(
        encode, tokenizer=tokenizer, max_tokens=context_length, too_long=too_long,
        on_dialog=on_dialog,
    )  # fmt: skip
    found, skipped = read(itertools.chain.from_iterable(map(dialogs, paths)))
    if held_out_paths:
        held_out, more = read(itertools.chain.from_iterable(map(dialogs, held_out_paths)))
        skipped = skipped.and_also(more)
        rest = list(range(len(found)))
    else:
        count = min(64, len(found) // 20) if num_held_out is None else num_held_out
        if not 0 <= count <= len(found):
            raise ValueError(f"{count} dialogs cannot be held out of {len(found)}")
        mixed = Permutation(max(1, len(found)), f"{seed} held out")
        order = [mixed(index) for index in range(len(found))]
        held_out, rest = found.subset(sorted(order[:count])), sorted(order[count:])
    known = {held_out[index][0].tobytes() for index in range(len(held_out))}
    kept = [index for index in rest if found[index][0].tobytes() not in known]
    if same := len(rest) - len(kept):
        skipped.add("skipped: the same dialog is held out", "", same)
    if not kept:
        names = ", ".join(path.name for path in paths)
        why = "; ".join(skipped.lines())
        raise ValueError(f"no dialog to train on in {names}" + (f": {why}" if why else ""))
    return Data(found.subset(kept), held_out, skipped)


def num_windows(data: Data, context_length: int) -> int:
    """How many windows the dialogs to train on are packed into."""
    return len(_packs(data.trained, context_length))


def prepare(run: Path, config: SFTConfig, data: Data, vocabulary: Vocabulary) -> None:
    """Makes the run's folder: config, tokenizer, encoded dialogs. Nothing is left if it fails."""
    if config.lora is not None:
        config = replace(config, start_digest=weights_digest(open_start(config.start)))
    with atomic_directory(run) as folder:
        data.trained.save(folder / _TRAINED)
        data.held_out.save(folder / _HELD_OUT)
        write_run(folder, config, vocabulary)


def run_config(run: Path, parallel: str | None = None) -> SFTConfig:
    """The config of a prepared run, as `run_config.read_config`."""
    return read_config(run, SFTConfig, parallel)


def sft(run: Path, *, parallel: str | None = None, **options: Any) -> bool:
    """Starts or continues a prepared run; `options` are those of `running.run_stage`, `parallel`
    another layout than the run's own. Returns False if a signal stopped it early."""
    config = run_config(run, parallel)
    make = functools.partial(make_stage, run, config)
    weights = functools.partial(first_weights, config)
    network = None if config.lora is None else functools.partial(_with_pairs, config)
    options |= {"chat_template": LLAMA2_TEMPLATE, "network": network}
    return run_stage(run, config, make, weights, **options)


def make_stage(run: Path, config: SFTConfig, share: Share) -> SFT:
    """The stage of a prepared run for a process's share of its batches."""
    load = functools.partial(EncodedDialogs.load, vocab_size=len(share.vocabulary))
    packs = Packs(
        load(run / _TRAINED),
        context_length=config.context_length,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=share.rank,
        num_ranks=share.num_ranks,
    )
    held_out = _packs(load(run / _HELD_OUT), config.context_length).all()
    return SFT(
        share.ahead(packs.batch), held_out, config.micro_batch_size, config.settings.loss_chunk
    )


def _with_pairs(config: SFTConfig) -> Llama:
    """Pairs mean something only beside the weights that they were trained with."""
    assert config.lora is not None
    start = _start(config)
    if weights_digest(start) != config.start_digest:
        raise ValueError(
            f"the weights of {config.start} are not those that the run's adapter was begun beside; "
            "bring them back, or correct 'start' in its config.json"
        )
    generator = torch.Generator().manual_seed(config.seed)
    return lora_network(start, config.lora, config.settings.device, generator)


def first_weights(config: SFTConfig, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Those of the model that the run begins from; ValueError where it became another."""
    return start_weights(_start(config), names)


def _start(config: SFTConfig) -> Checkpoint:
    start = open_start(config.start)
    if start.config != config.model:
        raise ValueError(f"{config.start} is not the model that the run was prepared for")
    return start


def _check_lora(lora: LoRASettings, model: ModelConfig, settings: Settings) -> None:
    """ValueError for what LoRA cannot be trained with."""
    for size in (model.dim, model.ffn_dim):
        if lora.base == "int4" and size % RUN:
            raise ValueError(f"int4 packs {RUN} inputs together; this model has {size}: use int8")
    for name in ("parallel", "float8", "statistics_every"):
        if getattr(settings, name):
            option = name.replace("_", "-")
            raise ValueError(f"LoRA is trained in one process, plainly: leave out --{option}")


def _packs(dialogs: EncodedDialogs, context_length: int) -> Packs:
    return Packs(dialogs, context_length=context_length, batch_size=1, seed=0)
