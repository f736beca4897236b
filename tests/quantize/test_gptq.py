"""GPTQ against a loop that eliminates one input at a time, and against plain rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from puna.quantize.gptq import (
    GPTQSettings,
    Hessian,
    factorize,
    quantize_matrix,
    refitted,
)
from puna.quantize.grouped import Grouped
from puna.quantize.rounding import round_to_nearest

PLAIN = GPTQSettings(bits=4, group_size=32, act_order=False, search_range=False)
VARIANTS = {
    "plain": PLAIN,
    "asymmetric": replace(PLAIN, symmetric=False),
    "2 bits": replace(PLAIN, bits=2),
    "8 bits": replace(PLAIN, bits=8),
    "searched": replace(PLAIN, bits=3, search_range=True),
    "searched, asymmetric": replace(PLAIN, bits=3, search_range=True, symmetric=False),
    "one group": replace(PLAIN, group_size=-1),
    "groups over blocks": replace(PLAIN, group_size=200),
    "groups of 48": replace(PLAIN, group_size=48),
    "in order of activation": replace(PLAIN, act_order=True),
    "static groups": replace(PLAIN, act_order=True, static_groups=True),
    "everything": replace(PLAIN, bits=3, act_order=True, search_range=True, symmetric=False),
    "static and searched": replace(
        PLAIN, bits=3, act_order=True, static_groups=True, search_range=True
    ),
}


def problem(num_outputs: int, num_inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and the Hessian of inputs that depend on each other and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_outputs, num_inputs, generator=generator)
    mix = torch.randn(num_inputs, num_inputs, generator=generator) / num_inputs**0.5
    sizes = torch.rand(num_inputs, generator=generator) * 2
    inputs = torch.randn(4 * num_inputs, num_inputs, generator=generator) @ mix * sizes
    hessian = Hessian(num_inputs)
    hessian.add(inputs)
    return weight, hessian.matrix.double()


def fitted(
    group: np.ndarray, cost: np.ndarray, settings: GPTQSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zeros (O,) of a group (O, S)."""
    top = 2**settings.bits - 1
    if settings.symmetric:
        high = np.abs(group).max(1)
        low = -high
    else:
        low, high = np.minimum(group.min(1), 0), np.maximum(group.max(1), 0)
    best: tuple[Any, ...] | None = None
    for percent in range(100, 39, -2) if settings.search_range else (100,):
        scale = ((high - low) * (percent / 100) / top).astype(np.float16).astype(float)
        zero = np.round(-low * (percent / 100) * (1 / scale)).clip(0, top)
        if settings.symmetric:
            zero = np.full_like(scale, 2 ** (settings.bits - 1))
        error = (cost * (rounded(group, scale[:, None], zero[:, None], top)[1] - group) ** 2).sum(1)
        if best is None:
            best = error, scale, zero
        else:
            best = tuple(
                np.where(error < best[0], new, old)
                for new, old in zip((error, scale, zero), best, strict=True)
            )
    assert best is not None
    return best[1], best[2]


def rounded(w: np.ndarray, scale: Any, zero: Any, top: int) -> tuple[np.ndarray, np.ndarray]:
    codes = (np.round(w * (1 / scale)) + zero).clip(0, top)
    return codes, (codes - zero) * scale


def by_elimination(weight: Tensor, hessian: Tensor, settings: GPTQSettings) -> Grouped:
    """GPTQ with the inverse of what remains at each step, as in Optimal Brain Surgeon."""
    w, h = weight.double().numpy().copy(), hessian.numpy().copy()
    num_inputs = w.shape[1]
    size = num_inputs if settings.group_size == -1 else settings.group_size
    diagonal = np.diag(h)
    order = np.argsort(-diagonal, kind="stable") if settings.act_order else np.arange(num_inputs)
    inverse = np.linalg.inv(h + settings.damping * diagonal.mean() * np.eye(num_inputs))
    inverses = {}
    for i in order:
        inverses[i] = inverse[i].copy(), inverse[i, i]
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    cost = np.array([1 / inverses[i][1] for i in range(num_inputs)])
    groups = np.zeros(num_inputs, int)
    groups[order] = (order if settings.static_groups else np.arange(num_inputs)) // size
    grids = {}
    if settings.static_groups:
        for group in range(groups.max() + 1):
            inside = groups == group
            grids[group] = fitted(w[:, inside], cost[inside], settings)
    codes = np.zeros(w.shape)
    for place, i in enumerate(order):
        if groups[i] not in grids:
            members = order[place : place + size]
            grids[groups[i]] = fitted(w[:, members], cost[members], settings)
        scale, zero = grids[groups[i]]
        codes[:, i], value = rounded(w[:, i], scale, zero, 2**settings.bits - 1)
        row, pivot = inverses[i]
        w -= np.outer((w[:, i] - value) / pivot, row)
    return Grouped(
        settings.bits,
        size,
        codes.astype(np.uint8),
        np.stack([grids[g][0] for g in range(len(grids))], 1).astype(np.float16),
        np.stack([grids[g][1] for g in range(len(grids))], 1).astype(np.int16),
        groups.astype(np.int32),
    )


def quadratic_error(weight: Tensor, grouped: Grouped, hessian: Tensor) -> float:
    error = torch.from_numpy(grouped.dequantize()).double() - weight.double()
    return float(torch.trace(error @ hessian @ error.T))


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_equals_elimination_one_by_one(settings: GPTQSettings) -> None:
    weight, hessian = problem(9, 320)  # two blocks of 128 and a rest
    found, expected = (
        quantize_matrix(weight, hessian, settings),
        by_elimination(weight, hessian, settings),
    )
    assert (found.bits, found.group_size) == (expected.bits, expected.group_size)
    for field in ("codes", "scales", "zeros", "groups"):
        ours, theirs = getattr(found, field), getattr(expected, field)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, err_msg=field)
    assert len(np.unique(found.codes)) == 2**settings.bits or settings.bits == 8


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_inputs_that_do_not_depend_on_each_other_are_rounded_plainly(
    bits: int, group_size: int, symmetric: bool
) -> None:
    weight, _ = problem(8, 256)
    hessian = torch.diag(torch.rand(256, generator=torch.Generator().manual_seed(1)) + 0.1)
    settings = replace(PLAIN, bits=bits, group_size=group_size, symmetric=symmetric)
    expected = round_to_nearest(weight.numpy(), bits, group_size, symmetric)
    static = replace(settings, act_order=True, static_groups=True)
    for found in (
        quantize_matrix(weight, hessian, settings),
        quantize_matrix(weight, hessian, static),
    ):
        for field in ("codes", "scales", "zeros", "groups"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), field)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_products_with_the_inputs_change_less(bits: int, symmetric: bool) -> None:
    weight, hessian = problem(32, 256)
    settings = GPTQSettings(bits=bits, group_size=64, symmetric=symmetric)
    ours = quadratic_error(weight, quantize_matrix(weight, hessian, settings), hessian)
    plain = round_to_nearest(weight.numpy(), bits, 64, symmetric)
    assert ours < 0.5 * quadratic_error(weight, plain, hessian)


def test_two_inputs_by_hand() -> None:
    # One scale for (1, 0.4) at 2 bits: 2 / 3. The first becomes 0.667 with an error of 1/3, of
    # which the second, with correlation 0.5, takes half: 0.4 + 0.167 -> 0.667.
    hessian = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    settings = replace(PLAIN, bits=2, group_size=-1, damping=1e-9)
    found = quantize_matrix(torch.tensor([[1.0, 0.4]]), hessian, settings)
    assert found.codes.tolist() == [[3, 3]] and found.zeros.tolist() == [[2]]
    assert found.scales[0, 0] == np.float16(2 / 3)
    small = quantize_matrix(torch.tensor([[1.0, 0.16]]), hessian, settings)
    assert small.codes.tolist() == [[3, 2]]  # 0.16 + 0.167 is still nearer to 0


def test_order_of_activation_sorts_the_groups() -> None:
    weight, hessian = problem(4, 96)
    found = quantize_matrix(weight, hessian, replace(PLAIN, act_order=True))
    falling = torch.argsort(hessian.diagonal(), descending=True)
    assert found.groups[falling].tolist() == [i // 32 for i in range(96)] and not found.in_order
    static = replace(PLAIN, act_order=True, static_groups=True)
    assert quantize_matrix(weight, hessian, static).in_order


def test_unseen_inputs_are_rounded_plainly() -> None:
    weight, hessian = problem(4, 64)
    hessian[5], hessian[:, 5] = 0, 0
    found = quantize_matrix(weight, hessian, replace(PLAIN, bits=8)).dequantize()
    assert np.abs(found[:, 5] - weight[:, 5].numpy()).max() < 0.02


def test_weights_of_zero_stay_zero() -> None:
    weight, hessian = problem(4, 64)
    weight[1], weight[2, 32:] = 0, 0
    plain = replace(PLAIN, damping=1.0)
    for settings in (plain, replace(plain, symmetric=False)):
        found = quantize_matrix(weight, hessian, settings).dequantize()
        assert (found[1] == 0).all() and np.isfinite(found).all()


def test_damping_grows_where_the_hessian_is_not_positive() -> None:
    _, hessian = problem(1, 16)
    assert factorize(hessian, PLAIN).damping == PLAIN.damping
    hessian -= torch.eye(16).double() * hessian.diagonal().mean() * 0.5
    hessian.diagonal().clamp_(min=0.1)
    grown = factorize(hessian, PLAIN)
    assert grown.damping in (0.1, 1.0, 10.0)
    assert torch.linalg.eigvalsh(hessian).min() < -PLAIN.damping * hessian.diagonal().mean()


def test_the_running_hessian_is_the_mean_over_all_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    hessian, cross = Hessian(5), Hessian(5)
    for i, j in ((0, 1), (1, 3)):
        hessian.add(x[:, i:j])
        cross.add(x[:, i:j], y[:, i:j])
    rows, others = x.reshape(6, 5), y.reshape(6, 5)
    torch.testing.assert_close(hessian.matrix, 2 / 6 * rows.T @ rows)
    torch.testing.assert_close(cross.matrix, 2 / 6 * others.T @ rows)


def test_refitting_is_least_squares_towards_the_original_output() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    y = x + 0.2 * torch.randn(200, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    hessian, cross = 2 / 200 * x.T @ x, 2 / 200 * y.T @ x
    factor = factorize(hessian, replace(PLAIN, act_order=True, damping=1e-9))
    best = torch.linalg.lstsq(x, y @ weight.T).solution.T
    torch.testing.assert_close(
        refitted(weight, hessian, cross, factor, 1.0), best, rtol=0, atol=1e-6
    )
    half = refitted(weight, hessian, cross, factor, 0.5)
    torch.testing.assert_close(half, (weight + best) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bits": 5}, "2, 3, 4, 8 bits, not 5"),
        ({"group_size": 0}, "positive or -1"),
        ({"damping": 0.0}, "damping must be above 0"),
        ({"refit": 2.0}, "refit must be from 0 to 1"),
        ({"static_groups": True}, "act_order, which is off"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(PLAIN, **changes)


def test_numbers_that_are_none() -> None:
    weight, hessian = problem(4, 32)
    with pytest.raises(ValueError, match="Hessian has entries"):
        quantize_matrix(weight, hessian * float("nan"), PLAIN)
    with pytest.raises(ValueError, match="not a finite number"):
        quantize_matrix(weight * float("inf"), hessian, PLAIN)
    with pytest.raises(ValueError, match="too large for a scale"):
        quantize_matrix(weight * 1e8, hessian, PLAIN)
    with pytest.raises(ValueError, match="32 inputs, its Hessian is of 31"):
        quantize_matrix(weight, hessian[:31, :31], PLAIN)
    with pytest.raises(ValueError, match="cannot be inverted"):
        quantize_matrix(weight, hessian - 1e6 * torch.ones(32, 32), PLAIN)
