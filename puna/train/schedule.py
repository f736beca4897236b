"""How many steps a run has, and the learning rate of each."""

from __future__ import annotations

import math


def cosine(step: int, *, peak: float, warmup: int, total: int, final_fraction: float) -> float:
    """Linear warm-up to `peak`, then a cosine down to `final_fraction` of it at the last step.

    Steps count from 0. Llama 2 (arXiv 2307.09288, section 2.2): 2000 warm-up steps, "decay final
    learning rate down to 10% of the peak".
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    floor = peak * final_fraction
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def steps_for(epochs: float, num_items: int, batch_size: int) -> int:
    """Steps that take every window, or pair, `epochs` times at least; the last batch is whole.

    ValueError for epochs or a batch size that are no positive number.
    """
    if not 0 < epochs < math.inf:
        raise ValueError(f"epochs must be a positive number, not {epochs}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, not {batch_size}")
    return max(1, math.ceil(epochs * num_items / batch_size))
