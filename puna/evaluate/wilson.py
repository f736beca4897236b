"""Wilson's interval: what a share that was counted says about the one behind it."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


def wilson(successes: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval (Wilson 1927) of a share; (0, 1) where nothing was counted.

    A tie may count as half a success: the interval is then wider than it need be.
    Raises ValueError where there are more successes than were counted.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} of {count} is no share")
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # At the ends exactly, so that no rounding puts the share outside.
    low = (middle - half) / scale if successes else 0.0
    high = (middle + half) / scale if successes < count else 1.0
    return low, high
