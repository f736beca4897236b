"""What a stage starts from: a model of any format, or first weights, for one process or several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from puna import heads as scalar_heads
from puna.config import ModelConfig
from puna.engine.gpu.loading import read_network
from puna.formats import Checkpoint, open_checkpoint
from puna.formats.checkpoint import LazyTensor
from puna.formats.network import load_model, read_tensor
from puna.hub.locate import locate
from puna.lora import LoRASettings, attach
from puna.model import Llama, empty
from puna.parallel.part import Options, take_part
from puna.parallel.place import Place
from puna.train.contracts import Stage, Trainee
from puna.train.loop import Settings
from puna.train.several import Several
from puna.train.single import Single

# Names that are wanted -> whole weights, one at a time, of these at least.
Weights = Callable[[Collection[str]], Iterable[tuple[str, Tensor]]]


def open_start(model: str | Path) -> Checkpoint:
    """The checkpoint of a path, a shipped model's or a hub's name; no weight is read.

    It has a tokenizer: without one, and for what is no model, ValueError. Asks no network; a hub's
    model that is not here is a `hub.locate.NotPulledError`.
    """
    checkpoint = open_checkpoint(locate(str(model)))
    checkpoint.tokenizer()
    return checkpoint


def start_network(checkpoint: Checkpoint, device: str = "cpu") -> Llama:
    """The network with trainable fp32 weights, whatever they are stored as."""
    return load_model(checkpoint, device=device, dtype=torch.float32)


def start_weights(checkpoint: Checkpoint, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """The named weights as fp32, read one at a time, for `Part.fill` and `make_trainee`."""
    for name in names:
        yield name, read_tensor(checkpoint.tensors[name]).float()


def weights_digest(start: Checkpoint) -> str:
    """What a model's weights are known by, heads left out: another text for any other weights."""
    return _digest([start.tensors[name] for name in start.config.tensor_shapes()])


def scorers_digest(scorers: Sequence[Checkpoint]) -> str:
    """The same of reward models, with their heads."""
    return _digest([each.tensors[name] for each in scorers for name in sorted(each.tensors)])


def _digest(tensors: Sequence[LazyTensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.read().data)
    return digest.hexdigest()


def lora_network(
    checkpoint: Checkpoint, settings: LoRASettings, device: str, generator: torch.Generator
) -> Llama:
    """The network, frozen and held as the settings say, with new pairs to train."""
    network = read_network(checkpoint, settings.base, lambda name: torch.device(device))
    for weight in network.parameters():  # packed ones are none
        weight.data = weight.data.float()
    attach(network, settings, generator)
    return network


def make_trainee(
    model: ModelConfig,
    settings: Settings,
    stage: Stage,
    place: Place | None,
    weights: Weights | None,
    heads: tuple[str, ...] = (),
) -> Trainee:
    """The network to be trained in this process, at its `place` among several (None: alone).

    `weights` gives the first ones; None where a checkpoint of the run is going to fill them.
    `heads` are the scalar heads that it has (`config.HEADS`).
    """
    if place is None:
        return Single(_filled(model, settings.device, weights, heads), stage, settings)
    options = Options(
        settings.dtype,
        settings.recompute,
        settings.compile,
        "yes" if settings.float8 else "no",
        settings.schedule,
        heads,
    )
    part = take_part(model, place, options)
    if weights is not None:
        part.fill(weights(part.names()))
    return Several(part, stage, loss_chunk=settings.loss_chunk)


@torch.no_grad()
def _filled(
    model: ModelConfig, device: str, weights: Weights | None, heads: tuple[str, ...]
) -> Llama:
    network = empty(model)
    scalar_heads.attach(network, *heads)
    network.to_empty(device=device)
    if weights is not None:
        own = dict(network.named_parameters())
        for name, value in weights(own):
            own[name].copy_(value)
    return network
