"""A linear layer in AutoGPTQ's layout: `qweight`, `qzeros`, `scales`, `g_idx` <-> `Grouped`.

A layer of I inputs and O outputs holds, in words of 32 bits, codes of b bits along its inputs
(I * b / 32, O), and in G groups zeros along its outputs (G, O * b / 32) and scales (G, O).
Version 1 of the layout stores each zero less 1, and 0 as the largest code; version 2 as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.formats.checkpoint import LazyTensor, Packed, derived
from puna.formats.stored import FLOAT_TYPES, Stored
from puna.quantize.block_type import Bytes
from puna.quantize.grouped import Grouped, group_count
from puna.quantize.packing import codes_in, pack, unpack, words_for
from puna.quantize.storage import STORAGE

# Version of the layout -> what is added to a stored zero.
ZERO_POINTS = {"v1": 1, "v2": 0}
PARTS = ("qweight", "qzeros", "scales", "g_idx")
# Inputs and outputs that AutoGPTQ and GPTQModel pack together.
WIDTH_STEP = 32

Spec = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Layer:
    """The stored parts of a layer of `shape` (O, I), checked against each other."""

    shape: tuple[int, int]
    bits: int
    group_size: int  # -1: all inputs
    parts: Mapping[str, Stored]

    def stored_zeros(self) -> NDArray[np.uint8]:
        """(G, O), as they stand in the file."""
        qzeros = self.parts["qzeros"]
        return unpack(qzeros.read().view("<i4").reshape(qzeros.shape), self.bits)

    def read(self, zero_points: str) -> Grouped:
        """FormatError where `g_idx` names a group that there is not, or a scale is too large."""
        num_inputs = self.shape[1]
        groups = self._groups()  # before more is read
        scales = self._scales()
        # Kernels disagree on a stored zero of the largest code: AutoGPTQ's fallback and GPTQModel
        # let it wrap to 0, others make it 2**bits. No writer has a zero that large.
        zeros = (self.stored_zeros() + np.uint8(ZERO_POINTS[zero_points])) & ((1 << self.bits) - 1)
        qweight = self.parts["qweight"]
        words = qweight.read().view("<i4").reshape(qweight.shape)
        return Grouped(
            bits=self.bits,
            group_size=num_inputs if self.group_size == -1 else self.group_size,
            codes=unpack(np.ascontiguousarray(words.T), self.bits),
            scales=np.ascontiguousarray(scales.T),
            zeros=np.ascontiguousarray(zeros.T, np.int16),
            groups=groups,
        )

    def _groups(self) -> NDArray[np.int32]:
        num_inputs = self.shape[1]
        if "g_idx" not in self.parts:
            size = num_inputs if self.group_size == -1 else self.group_size
            return (np.arange(num_inputs) // size).astype(np.int32)
        groups = self.parts["g_idx"].read().view("<i4")
        count = self.parts["scales"].shape[0]
        if groups.min() < 0 or groups.max() >= count:
            wrong = int(np.argmax((groups < 0) | (groups >= count)))
            raise self.parts["g_idx"].error(
                f"input {wrong} is of group {groups[wrong]}; there are {count}"
            )
        return groups

    def _scales(self) -> NDArray[np.float16]:
        stored = self.parts["scales"]
        if stored.dtype == "F16":
            return stored.read().view("<f2").reshape(stored.shape)
        values = STORAGE[FLOAT_TYPES[stored.dtype]].dequantize(stored.read())
        with np.errstate(over="ignore"):
            scales = values.astype(np.float16)
        if not np.isfinite(scales).all():
            raise stored.error("a scale is too large for float16")
        return scales.reshape(stored.shape)

    def lazy(self, zero_points: str, act_order: bool) -> LazyTensor:
        """The layer's weight, float32 (O, I)."""

        def read() -> Grouped:
            return self.read(zero_points)

        return LazyTensor(
            self.shape,
            "f32",
            read=lambda: read().dequantize().view(np.uint8),
            packed=packed(read, self.shape, self.bits, self.group_size, act_order),
            place=self.parts["qweight"].place,
            origin=derived(
                f"gptq {self.bits} {self.group_size} {zero_points} {sorted(self.parts)}",
                *(self.parts[part].origin for part in sorted(self.parts)),
            ),
        )


def check_layer(parts: Mapping[str, Stored], bits: int, group_size: int, act_order: bool) -> Layer:
    """The layer that `parts` (by the names of `PARTS`, with a `qweight`) make.

    FormatError unless their types and shapes fit each other, reading none. `g_idx` may be missing
    where groups are runs of neighbours.
    """
    qweight = parts["qweight"]
    needed = PARTS if act_order and group_size != -1 else PARTS[:3]
    for part in needed:
        if part not in parts:
            raise qweight.error(f"there is no {part} beside it")
    for part, stored in parts.items():
        known = tuple(FLOAT_TYPES) if part == "scales" else ("I32",)
        if stored.dtype not in known:
            raise stored.error(f"it is {stored.dtype}, not {' or '.join(known)}")
    if len(qweight.shape) != 2:
        raise qweight.error(f"it has shape {qweight.shape}, not two dimensions")
    rows, num_outputs = qweight.shape
    num_inputs = codes_in(rows, bits)
    if num_inputs is None or words_for(num_outputs, bits) is None:
        raise qweight.error(f"codes of {bits} bits do not fill its shape {qweight.shape}")
    specs = layer_specs((num_outputs, num_inputs), bits, group_size)
    for part, stored in parts.items():
        if stored.shape != specs[part][1]:
            raise stored.error(
                f"it has shape {stored.shape}; {num_outputs} outputs and {num_inputs} inputs of "
                f"{bits} bits with group_size {group_size} need {specs[part][1]}"
            )
    return Layer((num_outputs, num_inputs), bits, group_size, parts)


def packed(
    read: Callable[[], Grouped],
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    act_order: bool,
) -> Packed:
    """What a tensor of `shape` (O, I) says of the integers that it is made of.

    `group_size` is the file's, -1 for all inputs; `act_order` whether `g_idx` tells the groups.
    """
    label = f"gptq-{bits}bit-{group_size}g" + ("-actorder" if act_order else "")
    sizes = layer_specs(shape, bits, group_size).values()
    num_bytes = sum(int(np.prod(shape)) * (2 if dtype == "F16" else 4) for dtype, shape in sizes)
    return Packed(label, bits, num_bytes, read)


def layer_specs(shape: tuple[int, int], bits: int, group_size: int) -> dict[str, Spec]:
    """Part -> type and shape, in the order of `layer_arrays`, of a layer whose words are full."""
    num_outputs, num_inputs = shape
    num_groups = group_count(num_inputs, group_size)
    return {
        "qweight": ("I32", (num_inputs * bits // 32, num_outputs)),
        "qzeros": ("I32", (num_groups, num_outputs * bits // 32)),
        "scales": ("F16", (num_groups, num_outputs)),
        "g_idx": ("I32", (num_inputs,)),
    }


def layer_arrays(grouped: Grouped, zero_points: str) -> Iterator[Bytes]:
    """The bytes of each part, in the order of `layer_specs`; no more than one beside `grouped`."""
    mask = (1 << grouped.bits) - 1
    yield _raw(pack(grouped.codes, grouped.bits).T)
    zeros = (grouped.zeros.T - ZERO_POINTS[zero_points]) & mask
    yield _raw(pack(zeros.astype(np.uint8), grouped.bits))
    yield _raw(grouped.scales.T)
    yield _raw(grouped.groups)


def _raw(array: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(array).view(np.uint8)
