"""The table of schemes that the engine computes with: packed layouts of weights, and of the cache.

A scheme's layout is documented where it is packed; these functions are the reference that kernels
for it are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.quantize.fp8 import pack_fp8, scaled_product, unpack_fp8
from puna.quantize.grouped import Grouped
from puna.quantize.int_groups import (
    Tensors,
    pack_grouped_int4,
    pack_grouped_int8,
    pack_int4,
    pack_int8,
    unpack_int4,
    unpack_int8,
)
from puna.quantize.kv_cache import dequantize_kv, quantize_kv


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a weight (O, I) is packed.

    `pack(weight, group_size)`; `pack_grouped` takes integers as they are (None: it has none of
    that kind); `unpack(tensors, group_size, rows)` gives float32 rows in the packed order of
    inputs. `group_size` is the default, -1 a whole row. `product(tensors, x)`, where given, is
    x W^T by the hardware's own arithmetic, instead of that of unpacked weights.
    """

    name: str
    group_size: int
    pack: Callable[[Tensor, int], Tensors]
    unpack: Callable[[Mapping[str, Tensor], int, slice], Tensor]
    pack_grouped: Callable[[Grouped], Tensors] | None = None
    product: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class CacheScheme:
    """How keys and values (..., D) are kept: codes and scales, and back in a dtype."""

    name: str
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
    dequantize: Callable[[Tensor, Tensor, torch.dtype], Tensor]


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", -1, pack_int8, unpack_int8, pack_grouped_int8),
        Scheme("int4", 128, pack_int4, unpack_int4, pack_grouped_int4),
        Scheme("fp8", -1, pack_fp8, unpack_fp8),
        # Activations too, where the GPU multiplies fp8.
        Scheme("fp8_dynamic", -1, pack_fp8, unpack_fp8, product=scaled_product),
    )
}
CACHE_SCHEMES: dict[str, CacheScheme] = {
    scheme.name: scheme for scheme in (CacheScheme("int8", quantize_kv, dequantize_kv),)
}


def scheme(name: str) -> Scheme:
    """The weight scheme called `name`; ValueError lists the names there are."""
    if name not in SCHEMES:
        raise ValueError(f"no scheme '{name}'; there are: {', '.join(SCHEMES)}")
    return SCHEMES[name]


def scheme_for_bits(bits: int) -> str:
    """The scheme that runs `Grouped` integers of so many bits."""
    return "int4" if bits <= 4 else "int8"
