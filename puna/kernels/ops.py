"""The GPU kernels as torch operators, so that a compiled network calls them as they are.

On `cuda` an operator launches its Triton kernel, on `cpu` it is its definition.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.kernels import paged
from puna.kernels.layouts import HALF, LAYOUTS, RUN, unpack

_ROWS = 1024  # of a packed weight that the definition unpacks at a time


def runs_packed(x: Tensor, name: str, group: int) -> bool:
    """Whether there is a kernel for x (..., I) times a weight packed as `name`."""
    fits = group % HALF == 0 and x.shape[-1] % RUN == 0
    return x.is_cuda and name in LAYOUTS and fits


def packed_linear(x: Tensor, tensors: dict[str, Tensor], name: str, group: int) -> Tensor:
    """x (..., I) W^T (..., O) over planes (`layouts.py`)."""
    rows = x.reshape(-1, x.shape[-1])
    parts = [tensors.get(key) for key in _TENSORS[1:]]
    out: Tensor = packed_linear_op(rows, tensors["scales"], *parts, name, group)
    return out.view(*x.shape[:-1], out.shape[-1])


def dense_linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x (..., I) W^T; a single row on a GPU goes through a kernel that reads at full speed."""
    if not x.is_cuda or x.numel() != x.shape[-1]:
        return F.linear(x, weight_OI)
    out: Tensor = dense_row_op(x.reshape(1, -1), weight_OI)
    return out.view(*x.shape[:-1], -1)


_TENSORS = ("scales", "codes", "twos", "ones", "zeros", "supers", "super_zeros")


@torch.library.custom_op("puna::packed_linear", mutates_args=(), device_types="cpu")
def packed_linear_op(
    x: Tensor,
    scales: Tensor,
    codes: Tensor | None,
    twos: Tensor | None,
    ones: Tensor | None,
    zeros: Tensor | None,
    supers: Tensor | None,
    super_zeros: Tensor | None,
    name: str,
    group: int,
) -> Tensor:
    """x (R, I) -> (R, O)."""
    tensors = _named(scales, codes, twos, ones, zeros, supers, super_zeros)
    parts = [
        F.linear(x, unpack(tensors, name, group, slice(begin, begin + _ROWS)).to(x.dtype))
        for begin in range(0, len(scales), _ROWS)
    ]
    return torch.cat(parts, dim=1)


@packed_linear_op.register_kernel("cuda")
def _packed_linear_cuda(x: Tensor, *arguments: Tensor | str | int | None) -> Tensor:
    from puna.kernels.triton.packed_linear import packed_linear

    *tensors, name, group = arguments
    return packed_linear(x.contiguous(), _named(*tensors), name, group)  # type: ignore[arg-type]


@packed_linear_op.register_fake
def _packed_linear_fake(x: Tensor, scales: Tensor, *rest: object) -> Tensor:
    return x.new_empty(len(x), len(scales))


def _named(*tensors: Tensor | None) -> dict[str, Tensor]:
    pairs = zip(_TENSORS, tensors, strict=True)
    return {key: tensor for key, tensor in pairs if tensor is not None}


@torch.library.custom_op("puna::dense_row", mutates_args=(), device_types="cpu")
def dense_row_op(x: Tensor, weight: Tensor) -> Tensor:
    """x (1, I) -> (1, O)."""
    return F.linear(x, weight)


@dense_row_op.register_kernel("cuda")
def _dense_row_cuda(x: Tensor, weight: Tensor) -> Tensor:
    from puna.kernels.triton.dense_linear import dense_linear

    return dense_linear(x.contiguous(), weight)


@dense_row_op.register_fake
def _dense_row_fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(1, len(weight))


@torch.library.custom_op(
    "puna::paged_attention", mutates_args=("keys", "values"), device_types="cpu"
)
def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    slots: Tensor,
    tables: Tensor,
    starts: Tensor,
    counts: Tensor,
    owners: Tensor,
    tile: int,
    splits: int,
) -> Tensor:
    """Stores k and v (R, K, D) in pages, then attends with q (R, H, D); see `paged.py`."""
    rows = paged.Rows(positions, slots, tables, starts, counts, owners, tile, splits)
    paged.store(k, v, keys, values, slots)
    return paged.attend(q, keys, values, rows)


@paged_attention.register_kernel("cuda")
def _paged_attention_cuda(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, *rows: object
) -> Tensor:
    from puna.kernels.triton.paged_attention import attend, store

    described = paged.Rows(*rows)  # type: ignore[arg-type]
    store(k, v, keys, values, described.slots)
    return attend(q.contiguous(), keys, values, described)


@paged_attention.register_fake
def _paged_attention_fake(q: Tensor, *rest: object) -> Tensor:
    return q.new_empty(q.shape)
