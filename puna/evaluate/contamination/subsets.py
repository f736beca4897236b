"""Whether contamination has helped a model: scores of clean and dirty samples beside the others'.

Appendix A.6 of the Llama 2 paper (arXiv 2307.09288). Clean samples may just be the harder ones, so
one subset proves nothing: contamination is said to have helped only where the clean do worse than
what such a number of samples would by chance, their complement better, and the dirty better, their
complement worse, each by more than two standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTHS = (10, 20, 30, 40, 50)  # tokens, the least of a span that counts
LIMIT = 2.0  # of |Z|
_CLEAN, _DIRTY = 0.2, 0.8  # shares of contaminated tokens


@dataclass(frozen=True, slots=True)
class Subset:
    """Samples by their contamination: their number and mean; `z` as the paper's Z_n.

    `mean` is None where there are none, `z` there and where all samples have the same figure.
    """

    name: str
    count: int
    mean: float | None
    z: float | None


# By name: which shares are in it, and the sign of z where contamination helps.
SUBSETS: dict[str, tuple[Callable[[Floats], NDArray[np.bool_]], int]] = {
    "clean": (lambda shares: shares < _CLEAN, -1),
    "not clean": (lambda shares: shares >= _CLEAN, 1),
    "not dirty": (lambda shares: shares < _DIRTY, -1),
    "dirty": (lambda shares: shares >= _DIRTY, 1),
}


def subsets(figures: Floats, shares: Floats) -> tuple[Subset, ...]:
    """The four subsets of samples with `figures` (S,) and `shares` (S,) of contaminated tokens.

    z is the subset's mean less that of all, over the standard deviation of all divided by the
    square root of the subset's size.
    """
    mean, deviation = (float(of(figures)) if len(figures) else 0.0 for of in (np.mean, np.std))
    found = []
    for name, (chosen, _) in SUBSETS.items():
        inside = figures[chosen(shares)]
        if not len(inside):
            found.append(Subset(name, 0, None, None))
            continue
        error = deviation / math.sqrt(len(inside))
        z = (float(inside.mean()) - mean) / error if error else None
        found.append(Subset(name, len(inside), float(inside.mean()), z))
    return tuple(found)


def has_helped(found: tuple[Subset, ...]) -> bool:
    """Whether all four z are beyond `LIMIT`, each on its side."""
    signs = (SUBSETS[subset.name][1] for subset in found)
    return all(
        subset.z is not None and sign * subset.z > LIMIT
        for subset, sign in zip(found, signs, strict=True)
    )
