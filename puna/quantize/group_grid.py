"""The grid that a group of weights is rounded to: its scale and zero, from the group's range.

Weights lie input-major here: (S, O), S inputs of a group by O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Shares of the range that the search tries: 100 % down to 40 %.
_SHARES = tuple(1 - step / 50 for step in range(31))


@dataclass(frozen=True, slots=True)
class Grid:
    """`scale` and `zero` (O,), whole numbers in floats: a weight is scale * (code - zero).

    `scale` is what float16 holds, as files do, so that rounding already knows its error.
    """

    scale: Tensor
    zero: Tensor
    max_code: int

    def codes(self, weight_SO: Tensor) -> Tensor:
        """The nearest codes, in floats; a group of zeros (scale 0) gets its zero."""
        return ((weight_SO * _inverse(self.scale)).round() + self.zero).clamp(0, self.max_code)

    def values(self, codes_SO: Tensor) -> Tensor:
        return (codes_SO - self.zero) * self.scale


def min_max_grid(weight_SO: Tensor, bits: int, symmetric: bool) -> Grid:
    """Covers the group's range and 0; symmetric ones have their zero in the middle."""
    low, high = _range(weight_SO, symmetric)
    return _grid(low, high, bits, symmetric)


def searched_grid(weight_SO: Tensor, cost_S: Tensor, bits: int, symmetric: bool) -> Grid:
    """The grid of the least squared error, `cost_S` for each input, among shrunken ranges.

    So large weights are clipped where the others gain more from a finer scale.
    """
    low, high = _range(weight_SO, symmetric)
    best = _grid(low, high, bits, symmetric)
    scale, zero = best.scale, best.zero
    least = _error(weight_SO, cost_S, best)
    for share in _SHARES[1:]:
        tried = _grid(low * share, high * share, bits, symmetric)
        error = _error(weight_SO, cost_S, tried)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, tried.scale, scale)
        zero = torch.where(better, tried.zero, zero)
    return Grid(scale, zero, best.max_code)


def _range(weight_SO: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    if symmetric:
        high = weight_SO.abs().amax(0)
        return -high, high
    return weight_SO.amin(0).clamp(max=0), weight_SO.amax(0).clamp(min=0)


def _grid(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Grid:
    max_code = 2**bits - 1
    scale = ((high - low) / max_code).half().to(low.dtype)
    if not scale.isfinite().all():
        raise ValueError("a group of weights is too large for a scale in float16")
    if symmetric:
        return Grid(scale, torch.full_like(scale, 2 ** (bits - 1)), max_code)
    return Grid(scale, (-low * _inverse(scale)).round().clamp(0, max_code), max_code)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))


def _error(weight_SO: Tensor, cost_S: Tensor, grid: Grid) -> Tensor:
    return cost_S @ (grid.values(grid.codes(weight_SO)) - weight_SO).square()
