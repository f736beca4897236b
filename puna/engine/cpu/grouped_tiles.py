"""Matrices of integers in groups, as GPTQ files hold them, as tiles: exactly, and not blown up."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.config import ModelConfig
from puna.formats.checkpoint import LazyTensor, Packed
from puna.kernels.step import INPUTS
from puna.kernels.tiles import Tiles, grouped_kind, pack, pack_grouped
from puna.quantize.grouped import Grouped

_RUN = 32  # columns of tiles that share a scale


@dataclass(frozen=True, slots=True)
class GroupedTiles:
    """Tiles by the canonical names, and the order of those whose columns are not in order."""

    tiles: dict[str, Tiles]
    orders: dict[str, NDArray[np.int32]]


def pack_grouped_tensors(
    library: ctypes.CDLL, config: ModelConfig, tensors: Mapping[str, LazyTensor]
) -> GroupedTiles:
    """Packs `tensors`, all of which have integers; those that share an input together.

    Columns of weights that were quantized in order of activation are sorted by group, which the
    step does to their input as well. Matrices that this cannot be done to, since readers of one
    input want it in different orders or groups are no multiples of 32 columns, become f32; that is
    logged.
    """
    made = GroupedTiles({}, {})
    for readers in _inputs(config):
        layers = {
            name: packed.read()
            for name in readers
            if (packed := _packed(tensors, name)) is not None
        }
        order = _common_order(layers, len(readers))
        for name, layer in layers.items():
            problem = _problem(layer, order)
            if problem is None:
                made.tiles[name] = _pack(library, layer, order)
            else:
                logging.getLogger("puna").warning("%s runs as f32: %s", name, problem)
                weight = np.ascontiguousarray(layer.dequantize()[:, order])
                made.tiles[name] = pack(library, "f32", weight.view(np.uint8), weight.shape[1])
            if (order[1:] < order[:-1]).any():
                made.orders[name] = order
    return made


def _inputs(config: ModelConfig) -> Iterator[list[str]]:
    """The matrices of all layers, those together that read one input."""
    for layer in range(config.num_layers):
        for readers in INPUTS.values():
            yield [f"layers.{layer}.{reader}.weight" for reader in readers]


def _packed(tensors: Mapping[str, LazyTensor], name: str) -> Packed | None:
    return tensors[name].packed if name in tensors else None


def _common_order(layers: Mapping[str, Grouped], num_readers: int) -> NDArray[np.int32]:
    """Which input each column is: sorted by group, if all that read the input agree on that."""
    orders = [np.argsort(layer.groups, kind="stable") for layer in layers.values()]
    if len(orders) == num_readers and all(np.array_equal(each, orders[0]) for each in orders):
        return orders[0].astype(np.int32)
    return np.arange(len(orders[0]) if orders else 0, dtype=np.int32)


def _problem(layer: Grouped, order: NDArray[np.int32]) -> str | None:
    """Why there are no tiles of these integers with their columns in this order."""
    num_inputs, size = len(layer.groups), layer.group_size
    if num_inputs % _RUN or (size % _RUN and size < num_inputs):
        return f"{num_inputs} inputs in groups of {size} are no multiples of {_RUN}"
    if (layer.groups[order] != np.arange(num_inputs) // size).any():
        return "its groups are uneven, or in another order than those of others with its input"
    return None


def _pack(library: ctypes.CDLL, layer: Grouped, order: NDArray[np.int32]) -> Tiles:
    codes = layer.codes if layer.in_order else layer.codes[:, order]
    return pack_grouped(
        library,
        grouped_kind(layer.bits, symmetric=layer.symmetric),
        codes,
        np.ascontiguousarray(layer.scales).view(np.uint8),
        layer.zeros.astype(np.uint8),
        layer.group_size,
    )
