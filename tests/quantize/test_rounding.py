"""Rounding to the nearest: against a loop over weights, and the grid that GPTQ starts with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from puna.quantize.group_grid import min_max_grid
from puna.quantize.grouped import Grouped
from puna.quantize.packing import BITS
from puna.quantize.rounding import round_to_nearest


def matrix(outputs: int = 6, inputs: int = 96, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((outputs, inputs)).astype(np.float32) + np.float32(0.2)


def rounded_by_loops(x: np.ndarray, bits: int, size: int, symmetric: bool) -> np.ndarray:
    """What the codes stand for, weight by weight, the scale rounded as files store it."""
    out = np.empty_like(x)
    for o in range(len(x)):
        for begin in range(0, x.shape[1], size):
            group = [float(value) for value in x[o, begin : begin + size]]
            low, high = min(0.0, *group), max(0.0, *group)
            if symmetric:
                low, high = min(low, -high), max(high, -low)
            scale = float(np.float16(np.float32(high - low) / np.float32(2**bits - 1)))
            zero = 2 ** (bits - 1) if symmetric else round(-low / scale)
            for i, value in enumerate(group):
                code = min(max(round(value / scale) + zero, 0), 2**bits - 1)
                out[o, begin + i] = scale * (code - zero)
    return out


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 40, 96, 128, -1])
@pytest.mark.parametrize("bits", BITS)
def test_same_as_by_loops(bits: int, group_size: int, symmetric: bool) -> None:
    x = matrix()
    grouped = round_to_nearest(x, bits, group_size, symmetric)
    size = 96 if group_size == -1 else group_size
    assert grouped.scales.shape == (6, -(-96 // size)) and grouped.group_size == size
    assert grouped.in_order and grouped.symmetric == symmetric
    assert (
        grouped.codes.max() < 2**bits and 0 <= grouped.zeros.min() <= grouped.zeros.max() < 2**bits
    )
    np.testing.assert_allclose(
        grouped.dequantize(), rounded_by_loops(x, bits, size, symmetric), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_same_grid_as_gptq_starts_with(symmetric: bool) -> None:
    x = matrix(16, 64)
    grouped = round_to_nearest(x, 4, 64, symmetric)
    grid = min_max_grid(torch.from_numpy(x.T.copy()), 4, symmetric)
    np.testing.assert_array_equal(grouped.scales[:, 0], grid.scale.half().numpy())
    np.testing.assert_array_equal(grouped.zeros[:, 0], grid.zero.numpy())
    np.testing.assert_array_equal(grouped.codes.T, grid.codes(torch.from_numpy(x.T.copy())).numpy())


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_zeros_stay_zero(symmetric: bool) -> None:
    x = matrix()
    x[:, 32:64] = 0
    values = round_to_nearest(x, 4, 32, symmetric).dequantize()
    assert not values[:, 32:64].any() and values[:, :32].any(axis=1).all()


def test_one_sided_groups_use_all_codes() -> None:
    x = np.linspace(1, 2, 32, dtype=np.float32)[None]
    asymmetric = round_to_nearest(x, 4, 32, symmetric=False)
    assert asymmetric.zeros[0, 0] == 0 and asymmetric.codes.max() == 15
    error = np.abs(asymmetric.dequantize() - x).max()
    assert error < np.abs(round_to_nearest(x, 4, 32).dequantize() - x).max()


def test_more_rows_than_are_rounded_at_a_time() -> None:
    x = matrix(300, 2048)
    whole = round_to_nearest(x, 4, 128)
    for rows in (slice(0, 1), slice(127, 130), slice(299, 300)):
        part = round_to_nearest(x[rows], 4, 128)
        np.testing.assert_array_equal(whole.codes[rows], part.codes)
        np.testing.assert_array_equal(whole.dequantize()[rows], part.dequantize())


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "not a finite"), (np.inf, "not a finite"), (1e6, "weight of 1e\\+06 needs")],
)
def test_weights_that_have_no_scale(value: float, message: str) -> None:
    x = matrix()
    x[3, 40] = value
    with pytest.raises(ValueError, match=message):
        round_to_nearest(x, 4, 32)


@pytest.mark.parametrize(("bits", "size"), [(5, 32), (0, 32), (4, 0), (4, -2)])
def test_wrong_settings(bits: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"bits is none of|group size"):
        round_to_nearest(matrix(), bits, size)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("inputs", [96, 80])
def test_dequantize_by_definition(inputs: int, in_order: bool) -> None:
    """W[o, i] = scales[o, g] * (codes[o, i] - zeros[o, g]), with g = groups[i]."""
    generator = np.random.default_rng(1)
    groups = np.arange(inputs) // 32
    if not in_order:
        groups = generator.permutation(groups)
    grouped = Grouped(
        bits=4,
        group_size=32,
        codes=generator.integers(0, 16, (5, inputs)).astype(np.uint8),
        scales=generator.standard_normal((5, 3)).astype(np.float16),
        zeros=generator.integers(0, 16, (5, 3)).astype(np.int16),
        groups=groups.astype(np.int32),
    )
    assert grouped.in_order == in_order and not grouped.symmetric
    values = grouped.dequantize()
    for o in range(5):
        for i in range(inputs):
            g = int(groups[i])
            code, zero = int(grouped.codes[o, i]), int(grouped.zeros[o, g])
            assert values[o, i] == np.float32(float(grouped.scales[o, g]) * (code - zero))
