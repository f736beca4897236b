"""Checkpoint <-> network. The one module of this room that knows torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from puna import lora
from puna.config import ModelConfig
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.heads import attach
from puna.model import Llama, empty
from puna.quantize.block_type import Bytes
from puna.quantize.storage import STORAGE
from puna.tokenizer import Vocabulary

_TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_STORAGE = {dtype: name for name, dtype in _TORCH.items()}


def load_model(
    checkpoint: Checkpoint, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Llama:
    """The network with the checkpoint's weights, tensor by tensor: never two copies of them."""
    model = empty(checkpoint.config)
    attach(model, *checkpoint.heads)
    for name in checkpoint.tensors:
        weight = read_tensor(checkpoint.tensors[name]).to(device=device, dtype=dtype)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(weight))
    return model


def as_checkpoint(model: Llama, path: Path, vocabulary: Vocabulary | None) -> Checkpoint:
    """The live weights of a network as a checkpoint, for the formats to write; LoRA pairs are
    merged into theirs as a tensor is read."""
    layers = lora.layers_of(model)
    inside = tuple(name.removesuffix("weight") for name in layers)
    weights = {n: w for n, w in model.named_parameters() if not n.startswith(inside)}
    tensors = state_tensors(weights) | {name: _merged(layer) for name, layer in layers.items()}
    return _checkpoint(model.config, tensors, path, vocabulary)


def weights_as_checkpoint(
    config: ModelConfig, weights: Mapping[str, Tensor], path: Path, vocabulary: Vocabulary | None
) -> Checkpoint:
    """The same of weights that stand in no network."""
    return _checkpoint(config, state_tensors(weights), path, vocabulary)


def _checkpoint(
    config: ModelConfig,
    tensors: Mapping[str, LazyTensor],
    path: Path,
    vocabulary: Vocabulary | None,
) -> Checkpoint:
    return Checkpoint(
        format="network",
        path=path,
        config=config,
        tensors=tensors,
        load_vocabulary=lambda: vocabulary,
    )


def state_tensors(tensors: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Any float tensors as lazy ones, for the containers to write."""
    return {name: _lazy(tensor) for name, tensor in tensors.items()}


def read_tensor(tensor: LazyTensor) -> Tensor:
    """A lazy tensor as a torch tensor of its own memory; one of blocks as float32."""
    if tensor.dtype not in _TORCH:
        return torch.from_numpy(tensor.read_float32())
    return torch.from_numpy(np.ascontiguousarray(tensor.read())).view(_TORCH[tensor.dtype])


def _lazy(weight: Tensor) -> LazyTensor:
    kind = STORAGE[_STORAGE[weight.dtype]]
    shape = tuple(weight.shape)

    def read() -> Bytes:
        raw = weight.detach().cpu().clone(memory_format=torch.contiguous_format).view(torch.uint8)
        return raw.numpy().reshape(kind.stored_shape(shape))

    return LazyTensor(shape, kind.name, read)


def _merged(layer: lora.LoRALinear) -> LazyTensor:
    shape = (layer.base.out_features, layer.base.in_features)
    return LazyTensor(shape, _STORAGE[torch.float32], lambda: _lazy(layer.merged()).read())
