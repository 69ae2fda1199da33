"""Intervals of proportions."""

from __future__ import annotations

import math


def wilson_interval(rate: float, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion: Wilson, J. Am. Stat. Assoc. 22 (1927) 209.

    Everything is possible where nothing was counted.
    """
    if total == 0:
        return 0.0, 1.0
    scale = 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / scale
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
