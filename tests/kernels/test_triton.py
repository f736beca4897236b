"""Triton kernels against their definitions: on a GPU where there is one, else interpreted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.kernels import paged
from puna.kernels.layouts import LAYOUTS, unpack
from puna.quantize.block_schemes import BLOCK_SCHEMES, planes
from puna.quantize.gptq import GPTQSettings, quantize_matrix
from puna.quantize.linear import QuantizedLinear
from puna.quantize.schemes import SCHEMES
from puna.quantize.storage import STORAGE

pytest.importorskip("triton", reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter multiplies bfloat16 by its bits in `tl.dot`.
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if DEVICE == "cuda" else ())
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
INTEGERS = [("int8", -1), ("int8", 32), ("int8", 48), ("int4", 32), ("int4", 128)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(device=DEVICE, dtype=dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", BLOCK_SCHEMES)
def test_planes_are_the_stored_numbers(name: str) -> None:
    stored = STORAGE[name].quantize(normal(5, 768).cpu().numpy(), None)
    tensors = planes(name, torch.from_numpy(stored))
    scheme = BLOCK_SCHEMES[name]
    expected = STORAGE[name].dequantize(stored)
    found = scheme.unpack(tensors, scheme.group_size, slice(None))
    assert np.array_equal(found.numpy(), expected)
    rows = scheme.unpack(tensors, scheme.group_size, slice(2, 4))
    assert np.array_equal(rows.numpy(), expected[2:4])
    packed = scheme.pack(normal(5, 768), scheme.group_size)
    assert all(torch.equal(packed[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(("name", "group"), INTEGERS)
def test_the_definition_holds_integer_schemes(name: str, group: int) -> None:
    layer = QuantizedLinear.from_weight(normal(40, 768), name, group)
    tensors = dict(layer.named_buffers())
    assert torch.equal(unpack(tensors, name, layer.group_size), layer.dequantize())


CASES = [(name, scheme.group_size) for name, scheme in BLOCK_SCHEMES.items()] + INTEGERS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, 70])
@pytest.mark.parametrize(("name", "group"), CASES)
def test_packed_linear(name: str, group: int, num_rows: int, dtype: torch.dtype) -> None:
    from puna.kernels.triton.packed_linear import packed_linear

    # 70 outputs and 24 runs fill no tile; with 3 rows the inputs are split.
    scheme = BLOCK_SCHEMES.get(name) or SCHEMES[name]
    group = 768 if group == -1 else group
    tensors = {key: part.to(DEVICE) for key, part in scheme.pack(normal(70, 768), group).items()}
    x = normal(num_rows, 768, seed=1, dtype=dtype)
    found = packed_linear(x, tensors, name, group)
    expected = x.double() @ unpack(tensors, name, group).double().T
    assert found.dtype == dtype and distance(found, expected) < TOLERANCE[dtype]


def test_every_layout_was_tried() -> None:
    assert {name for name, _ in CASES} == set(LAYOUTS)


def test_gptq_in_order_of_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    from puna.kernels.triton import packed_linear as kernels
    from puna.quantize import linear

    x = normal(64, 128, seed=1) * torch.linspace(2, 0.1, 128, device=DEVICE)
    settings = GPTQSettings(bits=4, group_size=32)
    grouped = quantize_matrix(normal(40, 128).cpu(), (x.T @ x).cpu(), settings)
    assert not grouped.in_order
    layer = QuantizedLinear.from_grouped(grouped, "int4").to(DEVICE)
    calls = []

    def watched(x: Tensor, tensors: Any, name: str, group: int) -> Tensor:
        calls.append(name)
        return kernels.packed_linear(x.contiguous(), tensors, name, group)

    monkeypatch.setattr(linear, "runs_packed", lambda *arguments: True)
    monkeypatch.setattr(linear, "packed_linear", watched)
    with torch.no_grad():
        found = layer(x)
    expected = x.double().cpu() @ torch.from_numpy(grouped.dequantize()).double().T
    assert calls == ["int4"] and distance(found.cpu(), expected) < 2e-6


@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16), ids=str)
def test_dense_row(dtype: torch.dtype) -> None:
    from puna.kernels.triton.dense_linear import dense_linear

    weight, x = normal(37, 3000, dtype=dtype), normal(1, 3000, seed=1, dtype=dtype)
    expected = F.linear(x.double(), weight.double())
    assert distance(dense_linear(x, weight), expected) < TOLERANCE[dtype]


PAGES, SCRATCH = 40, 39


def rows(splits: int) -> paged.Rows:
    """Sequences of 1, 17 and 200 tokens with a new one each, 7 of a prompt, and one of padding."""
    positions = torch.tensor([0, 16, 199, *range(90, 97), 0])
    order = torch.randperm(SCRATCH, generator=torch.Generator().manual_seed(0))
    tables = torch.zeros(4, 14, dtype=torch.long)
    taken = 0
    for table, count in zip(tables, (1, 2, 13, 7), strict=True):
        table[:count], taken = order[taken : taken + count], taken + count
    owners = torch.tensor([0, 1, 2, *[3] * 7, 0])
    slots = tables[owners, positions // 16] * 16 + positions % 16
    slots[-1] = SCRATCH * 16
    tiles = torch.tensor([[0, 1, 0], [1, 1, 1], [2, 1, 2], [3, 4, 3], [7, 3, 3], [10, 0, 0]])
    tensors = (positions, slots, tables, *tiles.T)
    on_device = [tensor.int().contiguous().to(DEVICE) for tensor in tensors]
    return paged.Rows(*on_device, tile=4, splits=splits)  # type: ignore[arg-type]


# The row of padding is of no tile: what stands there may be too large for the type.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 32), (8, 2, 48), (4, 1, 8)])
def test_paged_attention(
    heads: int, kv_heads: int, width: int, splits: int, dtype: torch.dtype
) -> None:
    from puna.kernels.triton import paged_attention as kernels

    described = rows(splits)
    pages = [normal(PAGES, 16, kv_heads, width, seed=s, dtype=dtype) for s in (0, 1)]
    copies = [page.clone() for page in pages]
    q = normal(11, heads, width, seed=2, dtype=dtype)
    k, v = normal(11, 3, kv_heads, width, seed=3, dtype=dtype)[:, :2].unbind(1)
    kernels.store(k, v, *pages, described.slots)
    paged.store(k, v, *copies, described.slots)
    assert all(torch.equal(*pair) for pair in zip(pages, copies, strict=True))
    found = kernels.attend(q, *pages, described)[:10]
    expected = paged.attend(q.double(), *(page.double() for page in pages), described)[:10]
    assert found.dtype == dtype and distance(found, expected) < TOLERANCE[dtype]


def test_the_definition_of_paged_attention_is_plain_attention() -> None:
    described, pages = rows(1), [normal(PAGES, 16, 2, 8, seed=s) for s in (0, 1)]
    q = normal(11, 4, 8, seed=2)
    found = paged.attend(q, *pages, described)
    owners = [0, 1, 2, *[3] * 7]
    for row, owner in enumerate(owners):
        seen = [
            (described.tables[owner, p // 16], p % 16)
            for p in range(int(described.positions[row]) + 1)
        ]
        for head in range(4):
            keys, values = (torch.stack([page[i, s, head // 2] for i, s in seen]) for page in pages)
            weights = torch.softmax(keys @ q[row, head] / 8**0.5, dim=0)
            torch.testing.assert_close(found[row, head], weights @ values)
    assert not found[10].any()
