"""Integers in groups run as they are: against the network with the weights that they stand for."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from puna.engine.cpu.runner import NativeRunner
from puna.engine.cpu.weights import HEAD, load_weights
from puna.engine.torch_runner import TorchRunner
from puna.formats.checkpoint import Checkpoint, Packed
from puna.formats.network import as_checkpoint, load_model
from puna.kernels import native
from puna.kernels.step import INPUTS
from puna.kernels.tiles import KINDS, grouped_bytes
from puna.quantize.grouped import Grouped
from puna.quantize.rounding import round_to_nearest
from tests.engine.cpu.test_runner import LENGTH, EightBit, config, distances, singles, tokens_of
from tests.samples import random_model

pytestmark = pytest.mark.skipif(not native.available(), reason="native code was not built")

GROUP = {name.removesuffix("_order"): parts for name, parts in INPUTS.items()}


def input_of(name: str) -> str:
    """The input that a matrix reads."""
    layer, reader = name.split(".")[1], ".".join(name.split(".")[2:4])
    return layer + next(key for key, readers in GROUP.items() if reader in readers)


def checkpoint_of(
    folder: Path,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = True,
    orders: str = "none",
    skipped: str = HEAD,
) -> tuple[Checkpoint, dict[str, Grouped]]:
    """A model whose matrices are integers; in order, or in one of each input, or of each matrix."""
    base = as_checkpoint(random_model(config(), seed=1), folder, None)
    layers: dict[str, Grouped] = {}
    tensors = dict(base.tensors)
    for name, tensor in base.tensors.items():
        if name in ("tok_embeddings.weight", skipped) or len(tensor.shape) == 1:
            continue
        layer = round_to_nearest(tensor.read_float32(), bits, group_size, symmetric)
        if orders != "none":
            key = input_of(name) if orders == "input" and name != HEAD else name
            order = np.random.default_rng([*key.encode()]).permutation(tensor.shape[1])
            layer = replace(layer, codes=layer.codes[:, order], groups=layer.groups[order])
        layers[name] = layer
        weight = layer.dequantize()
        tensors[name] = replace(
            tensor,
            read=lambda weight=weight: weight.view(np.uint8),
            packed=Packed("integers", bits, layer.codes.nbytes, lambda layer=layer: layer),
        )
    return replace(base, tensors=tensors), layers


class InOrder(nn.Module):
    """A layer whose input is rounded to 8 bits in the order of its groups."""

    def __init__(self, weight: Tensor, order: Tensor) -> None:
        super().__init__()
        self.order, self.inner = order, EightBit(weight[:, order])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[..., self.order])


def reference(checkpoint: Checkpoint, layers: dict[str, Grouped]) -> TorchRunner:
    model = load_model(checkpoint)
    for name, layer in layers.items():
        order = torch.from_numpy(np.argsort(layer.groups, kind="stable"))
        path = name.removesuffix(".weight")
        model.set_submodule(path, InOrder(torch.from_numpy(layer.dequantize()), order))
    return TorchRunner(model, num_pages=LENGTH)


@pytest.mark.parametrize("orders", ["none", "input"])
@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "kind"),
    [
        (4, 128, True, "q4_0"),
        (4, 32, False, "grouped_4"),
        (3, 64, True, "grouped_4"),
        (2, -1, False, "grouped_4"),
        (8, 128, True, "q8_0"),
        (8, 64, False, "grouped_8"),
    ],
)
def test_logits_equal_the_networks(
    bits: int,
    group_size: int,
    symmetric: bool,
    kind: str,
    orders: str,
    level: str,
    tmp_path: Path,
) -> None:
    library = native.libraries()[level]
    checkpoint, layers = checkpoint_of(
        tmp_path, bits, group_size, symmetric=symmetric, orders=orders
    )
    tiles = load_weights(library, checkpoint).tiles
    assert {tiles[name].kind for name in layers} == {KINDS[kind]}
    most = {name: grouped_bytes(bits, layer.codes.shape) for name, layer in layers.items()}
    assert all(0.9 * most[name] < tiles[name].data.nbytes <= most[name] for name in layers)
    # Each token alone: roundings that fall the other way do not add up.
    batch = singles(tokens_of(97))
    found = NativeRunner(checkpoint, num_pages=LENGTH).step(batch).logits
    apart = distances(found, reference(checkpoint, layers).step(batch).logits)
    assert np.median(apart) < 1e-4 and apart.max() < 3e-2
    # So many that tiles are unpacked for all of them: the same bits.
    many = singles(np.tile(tokens_of(97), 2))
    wide = NativeRunner(checkpoint, num_pages=2 * LENGTH).step(many).logits
    assert np.array_equal(wide, np.tile(found, (2, 1)))


def test_a_head_of_integers_runs_as_f32(tmp_path: Path) -> None:
    checkpoint, layers = checkpoint_of(tmp_path, 4, 32, skipped="", orders="input")
    assert HEAD in layers
    batch = singles(tokens_of(97))
    found = NativeRunner(checkpoint, num_pages=LENGTH).step(batch).logits
    runner = reference(checkpoint, {name: layers[name] for name in layers if name != HEAD})
    assert np.median(distances(found, runner.step(batch).logits)) < 1e-4


@pytest.mark.parametrize("group_size", [48, 32])
def test_what_does_not_fit_tiles_is_said_and_runs_as_f32(
    group_size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Groups of 48 are no multiples of 32; else each matrix has an order of its own.
    orders = "none" if group_size == 48 else "matrix"
    checkpoint, layers = checkpoint_of(tmp_path, 4, group_size, orders=orders)
    with caplog.at_level(logging.WARNING, "puna"):
        runner = NativeRunner(checkpoint, num_pages=LENGTH)
    said = [record.getMessage() for record in caplog.records]
    in_f32 = {message.split()[0] for message in said}
    alone = {name for name in layers if name.split(".")[3] in ("wo", "w2")}
    assert in_f32 == set(layers) - (alone if group_size == 32 else set())
    assert all(" runs as f32: " in message for message in said)
    batch = singles(tokens_of(97))
    exact = TorchRunner(load_model(checkpoint), num_pages=LENGTH).step(batch).logits
    # Alone, wo and w2 still round their input to 8 bits.
    most = 1e-5 if group_size == 48 else 5e-2
    assert distances(runner.step(batch).logits, exact).max() < most
