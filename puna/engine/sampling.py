"""Choosing the next token from its logits: pure functions over one row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in.

    The defaults are those of Meta's chat example: 0.6 and 0.9.
    """

    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 0.9
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")


def probabilities(logits_V: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """Logits -> the distribution that is sampled from: temperature, then top-k, then top-p.

    Top-p keeps the likeliest tokens up to and including the one that reaches the mass
    (arXiv 1904.09751). Temperature must be above 0.
    """
    shifted = logits_V.astype(np.float64) - logits_V.max()
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, which is probability 0
        p = np.exp(shifted / sampling.temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = len(p) if sampling.top_k == 0 else min(sampling.top_k, len(p))
    mass = np.cumsum(p[order[:keep]])
    if sampling.top_p < 1:
        keep = int(np.searchsorted(mass, sampling.top_p * mass[-1])) + 1
    kept = np.zeros_like(p)
    kept[order[:keep]] = p[order[:keep]]
    return kept / kept.sum()


def choose(
    logits_V: NDArray[np.float32], sampling: Sampling, generator: np.random.Generator
) -> int:
    """The next token's id: the likeliest (lowest id on a tie) if greedy, else a random draw."""
    if sampling.temperature == 0:
        return int(np.argmax(logits_V))
    return int(generator.choice(len(logits_V), p=probabilities(logits_V, sampling)))
