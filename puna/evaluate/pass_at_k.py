"""Of a problem that was tried n times: how likely k tries have a right one among them."""

from __future__ import annotations

from math import comb


def pass_at_k(tries: int, right: int, k: int) -> float:
    """The unbiased estimate of Chen et al. (2021), eq. 1: 1 - C(n - c, k) / C(n, k).

    ValueError where there are fewer tries than k, or more right ones than tries.
    """
    if not 0 < k <= tries or not 0 <= right <= tries:
        raise ValueError(f"no pass@{k} of {right} right ones in {tries} tries")
    return 1.0 - comb(tries - right, k) / comb(tries, k)
