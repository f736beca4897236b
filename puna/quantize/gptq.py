"""GPTQ (arXiv 2210.17323): rounds a matrix so that its product with real inputs changes least.

Inputs are rounded one after another; the error that each leaves in the output is taken up by those
that still are floats, as the inverse Hessian says. O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from puna.quantize.group_grid import Grid, min_max_grid, searched_grid
from puna.quantize.grouped import Grouped
from puna.quantize.packing import BITS

_BLOCK = 128  # inputs whose errors reach the rest of the matrix in one product
_DAMPING_GROWTH = 10.0
_MAX_DAMPING = 10.0


@dataclass(frozen=True, slots=True)
class GPTQSettings:
    """How to round. The defaults are those of the least perplexity for cria, symmetric.

    `group_size` inputs share a scale, -1: all. `act_order` rounds inputs in falling order of the
    Hessian's diagonal, so that those that matter most leave their errors to the others. Then
    `static_groups` keeps groups of neighbours, whose grids come from the weights before any error
    reached them; without it a group is a run of that order, its grid fitted to the weights as they
    are by then, and the file's `g_idx` says which input is where. `damping` is added to the
    diagonal, as a share of its mean. `search_range` clips ranges where that lowers the error.
    `refit` (of a whole network) first moves each weight towards giving, from what the rounded
    layers before it feed it, what the original network had there: 1 all the way, 0 not, as in the
    paper.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    act_order: bool = True
    static_groups: bool = False
    damping: float = 0.01
    search_range: bool = True
    refit: float = 0.5

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"GPTQ rounds to {', '.join(map(str, BITS))} bits, not {self.bits}")
        if self.group_size != -1 and self.group_size < 1:
            raise ValueError(f"group_size must be positive or -1, not {self.group_size}")
        if not 0 < self.damping <= _MAX_DAMPING:
            raise ValueError(f"damping must be above 0, up to {_MAX_DAMPING}, not {self.damping}")
        if not 0 <= self.refit <= 1:
            raise ValueError(f"refit must be from 0 to 1, not {self.refit}")
        if self.static_groups and not self.act_order:
            raise ValueError("static_groups is about act_order, which is off; leave it out")


class Hessian:
    """H = 2/n sum of x x^T over the n inputs seen so far, as a running mean (I, I)."""

    def __init__(self, num_inputs: int, *, device: str = "cpu") -> None:
        self.matrix = torch.zeros(num_inputs, num_inputs, device=device)
        self.count = 0

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Inputs (..., I) of a linear layer; with `y` beside them, the sum is of y x^T."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        left = rows if y is None else y.detach().reshape(-1, y.shape[-1]).float()
        total = self.count + len(rows)
        self.matrix *= self.count / total
        self.matrix.addmm_(left.T, rows, alpha=2 / total)
        self.count = total


@dataclass(frozen=True, slots=True)
class Factor:
    """What all matrices of one input share: `order` (I,) of rounding, `upper` (I, I), damping used.

    `upper` is the Cholesky factor, upper triangular, of the damped Hessian's inverse in `order`.
    """

    order: Tensor
    upper: Tensor
    damping: float


def factorize(hessian: Tensor, settings: GPTQSettings) -> Factor:
    """Damps, orders and inverts a Hessian (I, I), in its own dtype.

    Where that is not positive definite the damping grows tenfold until it is, which the returned
    one tells. ValueError where it holds what is no number.
    """
    if not hessian.isfinite().all():
        raise ValueError("the Hessian has entries that are not finite numbers")
    matrix = hessian.clone()
    diagonal = matrix.diagonal()
    # Inputs that calibration never saw: independent of the others, so rounded plainly.
    diagonal[diagonal == 0] = 1
    order = torch.arange(len(matrix), device=matrix.device)
    if settings.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        matrix = matrix[order][:, order]
    mean = matrix.diagonal().mean()
    damping = settings.damping
    while damping <= _MAX_DAMPING:
        damped = matrix + torch.eye(len(matrix), device=matrix.device).to(matrix) * damping * mean
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return Factor(order, upper, damping)
        damping *= _DAMPING_GROWTH
    raise ValueError("the Hessian cannot be inverted; calibrate with more and more varied text")


def refitted(
    weight: Tensor, hessian: Tensor, cross: Tensor, factor: Factor, share: float
) -> Tensor:
    """The weight (O, I), moved by `share` to where its product with x is that of `weight` with y.

    `hessian` is of x, `cross` of y with x: W + share W (C - H) H^-1. The inverse is the damped one,
    so that directions which calibration hardly saw stay as they are. *Ours*; the aim of GPTAQ
    (arXiv 2504.02692), reached before rounding instead of within it. Half way is as good on text
    like the calibration's, and better on other.
    """
    drift = (weight.to(hessian) @ (cross - hessian))[:, factor.order]
    moved = (drift @ factor.upper.T) @ factor.upper
    return weight.to(hessian) + share * moved[:, torch.argsort(factor.order)]


def quantize_matrix(weight: Tensor, hessian: Tensor, settings: GPTQSettings) -> Grouped:
    """`weight` (O, I) rounded for inputs whose second moments are `hessian` (I, I)."""
    return quantize_factored(weight, factorize(hessian, settings), settings)


def quantize_factored(weight: Tensor, factor: Factor, settings: GPTQSettings) -> Grouped:
    """`quantize_matrix` with the part that depends on the inputs alone done before."""
    num_outputs, num_inputs = weight.shape
    if len(factor.order) != num_inputs:
        raise ValueError(
            f"the weight has {num_inputs} inputs, its Hessian is of {len(factor.order)}"
        )
    if not weight.isfinite().all():
        raise ValueError("a weight is not a finite number")
    group_size = num_inputs if settings.group_size == -1 else settings.group_size
    order, upper = factor.order, factor.upper
    # Input-major, so that the weights of one input lie together.
    left_IO = weight.to(upper).T[order].contiguous()
    groups = (order if settings.static_groups else torch.arange(num_inputs)) // group_size
    group_of = groups.tolist()
    # Rounding input i by e adds (e / upper[i, i])**2 to the error of the output.
    cost_I = upper.diagonal().square().reciprocal()
    grids: dict[int, Grid] = {}
    if settings.static_groups:
        places = torch.argsort(order)
        for group, place in enumerate(places.split(group_size)):
            grids[group] = _fit(left_IO[place], cost_I[place], settings)
    codes_IO = torch.empty(num_inputs, num_outputs, dtype=torch.uint8, device=upper.device)
    for begin, end in _blocks(num_inputs, group_size):
        block = left_IO[begin:end]
        errors = torch.empty_like(block)
        for i in range(begin, end):
            if group_of[i] not in grids:  # then `i` is its first, and all errors so far are in
                grids[group_of[i]] = _fit(
                    left_IO[i : i + group_size], cost_I[i : i + group_size], settings
                )
            grid = grids[group_of[i]]
            codes = grid.codes(left_IO[i])
            codes_IO[i] = codes
            error = (left_IO[i] - grid.values(codes)) / upper[i, i]
            block[i - begin :].addr_(upper[i, i:end], error, alpha=-1)
            errors[i - begin] = error
        left_IO[end:].addmm_(upper[begin:end, end:].T, errors, alpha=-1)
    inverse = torch.argsort(order)
    return _grouped(
        codes_IO[inverse],
        [grids[g] for g in range(len(grids))],
        groups.cpu()[inverse.cpu()],
        group_size,
        settings.bits,
    )


def _fit(weight_SO: Tensor, cost_S: Tensor, settings: GPTQSettings) -> Grid:
    if settings.search_range:
        return searched_grid(weight_SO, cost_S, settings.bits, settings.symmetric)
    return min_max_grid(weight_SO, settings.bits, settings.symmetric)


def _blocks(num_inputs: int, group_size: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `_BLOCK` inputs; a group begins with one or lies in one.

    So a group's weights hold every error before it when its grid is fitted.
    """
    begin = 0
    while begin < num_inputs:
        if group_size <= _BLOCK:
            end = begin + _BLOCK // group_size * group_size
        else:
            end = min(begin + _BLOCK, (begin // group_size + 1) * group_size)
        yield begin, min(end, num_inputs)
        begin = end


def _grouped(
    codes_IO: Tensor, grids: list[Grid], groups: Tensor, group_size: int, bits: int
) -> Grouped:
    scales = torch.stack([grid.scale for grid in grids], dim=1)
    zeros = torch.stack([grid.zero for grid in grids], dim=1)
    return Grouped(
        bits,
        group_size,
        codes=codes_IO.T.contiguous().cpu().numpy(),
        scales=scales.cpu().numpy().astype(np.float16),
        zeros=zeros.cpu().numpy().astype(np.int16),
        groups=groups.numpy().astype(np.int32),
    )
