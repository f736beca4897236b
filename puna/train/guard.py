"""Which batches are not applied, because the weights might not survive them.

PaLM's loss spiked about 20 times. Its authors went back about 100 steps and left out 200 to 500
batches; the same batches did no harm to other weights (arXiv 2204.02311, section 5.1). So here: a
bad batch is skipped, and where bad batches keep coming, the weights are those of the last
checkpoint again, and the data goes on after them. What counts as bad, and the numbers in
`train.loop.Settings`, are *ours*.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# The median absolute deviation of normal numbers times this is their standard deviation.
_NORMAL = 1.4826
LEAST_RISE = 0.1  # nats above the median that no batch is refused for, however even the others


class BadBatchError(Exception):
    """A batch that was not applied."""

    def __init__(self, reason: str, loss: float, grad_norm: float) -> None:
        super().__init__(reason)
        self.loss, self.grad_norm = loss, grad_norm


class DivergedError(ValueError):
    """Bad batches keep coming, however often the run went back to its last checkpoint."""

    def __init__(self, reason: str, num_rollbacks: int) -> None:
        tried = f", and it went back {num_rollbacks} times" if num_rollbacks else ""
        super().__init__(
            f"training diverged: {reason}{tried}. The last checkpoint is kept; lower "
            "settings.learning_rate in the run's config.json and resume, or begin anew"
        )


def spike_limit(recent: Sequence[float], deviations: float) -> float:
    """The loss above which a batch is a spike: so many robust standard deviations above the median.

    Both are of `recent` losses, whose outliers hardly move them.
    """
    median = statistics.median(recent)
    spread = _NORMAL * statistics.median(abs(loss - median) for loss in recent)
    return median + max(deviations * spread, LEAST_RISE)


def objection(
    loss: float, grad_norm: float, recent: Sequence[float], *, window: int, deviations: float
) -> str | None:
    """Why a batch must not be applied; None where it may.

    `recent` are the losses of the last batches that were. Spikes are looked for once there are
    `window` of them, and not with 0 `deviations`.
    """
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            return f"its {name} is {value}"
    if deviations and len(recent) >= window:
        limit = spike_limit(recent, deviations)
        if loss > limit:
            return (
                f"its loss {loss:.4g} is a spike: above {limit:.4g}, where the last {len(recent)} "
                f"have a median of {statistics.median(recent):.4g}"
            )
    return None
