"""Blocks as GGML stores them -> the planes that GPU kernels read: the same numbers, moved.

A block's fields lie apart in the file, scales between codes; loads of a GPU want each kind of field
in rows of its own. Codes and scales stay what they are, so nothing is rounded. The planes take as
many bytes as the blocks, or more where packed scales become bytes: 3 % in Q4_K and Q5_K, 4 % in
Q3_K, 19 % in Q2_K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from puna.kernels.layouts import pack_nibbles, pack_ones, pack_twos, unpack
from puna.quantize.int_groups import Tensors
from puna.quantize.schemes import Scheme
from puna.quantize.storage import STORAGE


def _split(blocks: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """The fields (O, blocks, size) of stored blocks (O, blocks, bytes)."""
    return blocks.split(sizes, dim=2)


def _halves(field: Tensor) -> Tensor:
    """A field of f16 numbers (O, blocks, bytes) as (O, numbers)."""
    return field.contiguous().view(torch.float16).flatten(1)


def _unpacked(field: Tensor, bits: int, stride: int) -> Tensor:
    """Numbers (O, n) of a plane of GGML's, as `k_layout.unpack` gives them."""
    shifts = torch.arange(0, 8, bits, device=field.device, dtype=torch.uint8)[:, None]
    runs = field.unflatten(2, (-1, 1, stride)) >> shifts & ((1 << bits) - 1)
    return runs.flatten(1)


def _bits(high: Tensor) -> Tensor:
    """The fifth bits (O, n) of blocks of 32: bit i of a word is element i's."""
    shifts = torch.arange(8, device=high.device, dtype=torch.uint8)
    return (high[..., None] >> shifts & 1).flatten(1)


def _words(high: Tensor) -> Tensor:
    return high.contiguous().view(torch.int32).flatten(1)


def _q4_0(blocks: Tensor) -> Tensors:
    d, low = _split(blocks, 2, 16)
    return {"codes": low.flatten(1), "scales": _halves(d)}


def _q4_1(blocks: Tensor) -> Tensors:
    d, m, low = _split(blocks, 2, 2, 16)
    return {"codes": low.flatten(1), "scales": _halves(d), "zeros": -_halves(m)}


def _q5_0(blocks: Tensor) -> Tensors:
    d, high, low = _split(blocks, 2, 4, 16)
    return {"codes": low.flatten(1), "ones": _words(high), "scales": _halves(d)}


def _q5_1(blocks: Tensor) -> Tensors:
    d, m, high, low = _split(blocks, 2, 2, 4, 16)
    fields = {"codes": low.flatten(1), "ones": _words(high)}
    return {**fields, "scales": _halves(d), "zeros": -_halves(m)}


def _q8_0(blocks: Tensor) -> Tensors:
    d, codes = _split(blocks, 2, 32)
    # int8 + 128 as uint8: the other sign bit.
    return {"codes": codes.flatten(1) ^ 128, "scales": _halves(d)}


def _q2_k(blocks: Tensor) -> Tensors:
    scales, low, d, dmin = _split(blocks, 16, 64, 2, 2)
    return {
        "twos": pack_twos(_unpacked(low, 2, 32)),
        "scales": (scales & 15).flatten(1),
        "zeros": (scales >> 4).flatten(1),
        "supers": _halves(d),
        "super_zeros": _halves(dmin),
    }


def _q3_k(blocks: Tensor) -> Tensors:
    high, low, packed, d = _split(blocks, 32, 64, 12, 2)
    first = _unpacked(packed[:, :, :8], 4, 8).view(*packed.shape[:2], 16)
    second = _unpacked(packed[:, :, 8:], 2, 4).view(*packed.shape[:2], 16)
    return {
        "twos": pack_twos(_unpacked(low, 2, 32)),
        "ones": pack_ones(_unpacked(high, 1, 32)),
        "scales": ((first | second << 4).to(torch.int8) - 32).flatten(1),
        "supers": _halves(d),
    }


def _q4_k(blocks: Tensor) -> Tensors:
    d, dmin, packed, low = _split(blocks, 2, 2, 12, 128)
    return {"codes": pack_nibbles(_unpacked(low, 4, 32)), **_ranged_scales(d, dmin, packed)}


def _q5_k(blocks: Tensor) -> Tensors:
    d, dmin, packed, high, low = _split(blocks, 2, 2, 12, 32, 128)
    return {
        "codes": pack_nibbles(_unpacked(low, 4, 32)),
        "ones": pack_ones(_unpacked(high, 1, 32)),
        **_ranged_scales(d, dmin, packed),
    }


def _q6_k(blocks: Tensor) -> Tensors:
    low, high, scales, d = _split(blocks, 128, 64, 16, 2)
    return {
        "codes": pack_nibbles(_unpacked(low, 4, 64)),
        "twos": pack_twos(_unpacked(high, 2, 32)),
        "scales": scales.contiguous().view(torch.int8).flatten(1),
        "supers": _halves(d),
    }


def _ranged_scales(d: Tensor, dmin: Tensor, packed: Tensor) -> Tensors:
    """Q4_K's and Q5_K's scales and minimums; where their bits lie is in `k_layout`."""
    first, low = packed[:, :, :8], packed[:, :, 8:]
    top = first >> 2 & 0x30
    scales = torch.cat((first[:, :, :4] & 63, low & 15 | top[:, :, :4]), dim=2)
    minimums = torch.cat((first[:, :, 4:] & 63, low >> 4 | top[:, :, 4:]), dim=2)
    return {
        "scales": scales.flatten(1),
        "zeros": minimums.flatten(1),
        "supers": _halves(d),
        "super_zeros": _halves(dmin),
    }


# Storage type -> its split, and the weights that share a scale.
_SPLITS: dict[str, tuple[Callable[[Tensor], Tensors], int]] = {
    "q4_0": (_q4_0, 32),
    "q4_1": (_q4_1, 32),
    "q5_0": (_q5_0, 32),
    "q5_1": (_q5_1, 32),
    "q8_0": (_q8_0, 32),
    "q2_k": (_q2_k, 16),
    "q3_k": (_q3_k, 16),
    "q4_k": (_q4_k, 32),
    "q5_k": (_q5_k, 32),
    "q6_k": (_q6_k, 16),
}


def planes(name: str, stored: Tensor) -> Tensors:
    """The planes of rows stored as the block type `name` (O, row bytes), on their device."""
    split, _ = _SPLITS[name]
    fields = split(stored.unflatten(1, (-1, STORAGE[name].block_bytes)))
    return {key: tensor.contiguous() for key, tensor in fields.items()}


def _pack(name: str, weight: Tensor, group_size: int) -> Tensors:
    matrix = np.ascontiguousarray(weight.detach().float().cpu().numpy())
    return planes(name, torch.from_numpy(STORAGE[name].quantize(matrix, None)))


def _unpack(name: str, tensors: Mapping[str, Tensor], group_size: int, rows: slice) -> Tensor:
    return unpack(tensors, name, group_size, rows)


BLOCK_SCHEMES: dict[str, Scheme] = {
    name: Scheme(name, group, partial(_pack, name), partial(_unpack, name))
    for name, (_, group) in _SPLITS.items()
}
