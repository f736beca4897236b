"""GPTQ over a whole network, layer by layer: each sees what the rounded ones before it give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.config import ModelConfig
from puna.model import Block
from puna.quantize.calibration import (
    SEQUENCES_AT_ONCE,
    STEPS,
    ReadWeight,
    Runner,
    embed,
    load_block,
)
from puna.quantize.gptq import GPTQSettings, Hessian, factorize, quantize_factored, refitted
from puna.quantize.grouped import Grouped
from puna.quantize.work import (
    hidden_path,
    load_layer,
    num_layers_done,
    open_hidden,
    open_work,
    save_hidden,
    save_layer,
)

# How activations are kept on disk: numpy has no bfloat16, so its bits are.
_ON_DISK = {"f32": ("<f4", torch.float32), "bf16": ("<i2", torch.bfloat16)}


def quantize_model(
    config: ModelConfig,
    read: ReadWeight,
    tokens_NT: Tensor,
    settings: GPTQSettings,
    work: Path,
    *,
    activations: str = "f32",
    device: str = "cpu",
    on_linear: Callable[[str], None] = lambda name: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[tuple[str, Grouped]]:
    """Yields every linear layer of the blocks, by canonical name, as its layer is done.

    `read(name)` gives a weight, `tokens_NT` (N, T) the calibration text. Held at a time: one
    layer's weights and Hessians; activations lie in the folder `work` as `activations`, f32 or
    bf16. A run that was interrupted goes on from there at the layer it was in and gives the same
    bits; ValueError if that folder's run had other weights, text or settings. Within a layer the
    order is that of the forward pass ("true sequential"). `on_note` is told of raised damping.
    """
    if activations not in _ON_DISK:
        raise ValueError(f"activations are kept as {' or '.join(_ON_DISK)}, not {activations}")
    hidden_NTD = embed(read, tokens_NT)
    identity = {
        "config": config.to_dict(),
        "settings": asdict(settings),
        "activations": activations,
        "text": [list(tokens_NT.shape), _digest([tokens_NT])],
        "embedded text": _digest([hidden_NTD]),
    }
    open_work(work, identity)
    done = num_layers_done(work)
    for layer in range(done):
        grouped, digest = load_layer(work, layer)
        if digest != _digest(_weights(load_block(config, layer, read, "cpu"))):
            raise ValueError(f"{work} holds a run over other weights; give another folder")
        for name, matrix in grouped.items():
            on_linear(name)
            yield name, matrix
    if done == 0:
        # What the rounded network sees and what the original does; the same before any layer.
        shape = (2 if settings.refit else 1, *hidden_NTD.shape)
        _keep(work, 0, shape, iter([hidden_NTD.expand(shape)]), activations)
    del hidden_NTD
    forward = Runner(config, tokens_NT.shape[1], device)
    job = _Job(config, read, settings, work, activations, device, forward, on_linear, on_note)
    for layer in range(done, config.num_layers):
        yield from _quantize_layer(job, layer).items()


@dataclass(frozen=True)
class _Job:
    """What every layer needs of `quantize_model`."""

    config: ModelConfig
    read: ReadWeight
    settings: GPTQSettings
    work: Path
    activations: str
    device: str
    forward: Runner
    on_linear: Callable[[str], None]
    on_note: Callable[[str], None]


class _Hidden:
    """Activations on disk (1 or 2 networks, N, T, D), as batches of sequences in float32."""

    def __init__(self, mapped: NDArray[Any], activations: str) -> None:
        self._mapped, self._dtype = mapped, _ON_DISK[activations][1]
        self.shape = mapped.shape

    def __iter__(self) -> Iterator[Tensor]:
        for begin in range(0, self.shape[1], SEQUENCES_AT_ONCE):
            batch = torch.from_numpy(np.array(self._mapped[:, begin : begin + SEQUENCES_AT_ONCE]))
            yield batch.view(self._dtype).float()


def _keep(
    work: Path, layer: int, shape: tuple[int, ...], batches: Iterator[Tensor], activations: str
) -> None:
    disk_dtype, dtype = _ON_DISK[activations]

    def fill(mapped: NDArray[Any]) -> None:
        begin = 0
        for batch in batches:
            raw = batch.to(device="cpu", dtype=dtype).contiguous()
            end = begin + raw.shape[1]
            mapped[:, begin:end] = raw.view(torch.uint8).numpy().view(disk_dtype)
            begin = end

    save_hidden(work, layer, shape, fill, disk_dtype)


@torch.no_grad()
def _quantize_layer(job: _Job, layer: int) -> dict[str, Grouped]:
    hidden = _Hidden(open_hidden(job.work, layer), job.activations)
    # Of the rounded network, and of the original where that is followed too.
    blocks = [load_block(job.config, layer, job.read, job.device) for _ in range(hidden.shape[0])]
    digest = _digest(_weights(blocks[0]))
    found: dict[str, Grouped] = {}
    for step in STEPS:
        found |= _quantize_step(job, layer, step, blocks, hidden)
    outputs = (
        torch.stack([job.forward(block, x).cpu() for block, x in zip(blocks, batch, strict=True)])
        for batch in hidden
    )
    _keep(job.work, layer + 1, hidden.shape, outputs, job.activations)
    save_layer(job.work, layer, found, digest)
    hidden_path(job.work, layer).unlink()
    return found


def _quantize_step(
    job: _Job, layer: int, step: tuple[str, ...], blocks: list[Block], hidden: _Hidden
) -> dict[str, Grouped]:
    """Rounds the linear layers of a step, in place in the first block too."""
    num_inputs = _linear(blocks[0], step[0]).in_features
    hessian = Hessian(num_inputs, device=job.device)
    cross = Hessian(num_inputs, device=job.device)
    for batch in hidden:
        x = job.forward.until(blocks[0], step[0], batch[0])
        hessian.add(x)
        if len(blocks) > 1:
            cross.add(x, job.forward.until(blocks[1], step[0], batch[1]))
    factor = factorize(hessian.matrix, job.settings)
    if factor.damping != job.settings.damping:
        job.on_note(f"layer {layer}, {', '.join(step)}: damping raised to {factor.damping:g}")
    found: dict[str, Grouped] = {}
    for part in step:
        name = f"layers.{layer}.{part}.weight"
        weight = _linear(blocks[0], part).weight
        wanted = weight
        if len(blocks) > 1:
            wanted = refitted(weight, hessian.matrix, cross.matrix, factor, job.settings.refit)
        found[name] = quantize_factored(wanted, factor, job.settings)
        weight.copy_(torch.from_numpy(found[name].dequantize()))
        job.on_linear(name)
    return found


def _linear(block: Block, part: str) -> nn.Linear:
    linear = block.get_submodule(part)
    assert isinstance(linear, nn.Linear)
    return linear


def _weights(block: Block) -> list[Tensor]:
    return [weight for _, weight in block.named_parameters()]


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
