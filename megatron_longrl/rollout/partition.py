"""The partition of prompts over the engines of a replica."""

from __future__ import annotations

from collections.abc import Sequence


def balanced_ranges(costs: Sequence[float], parts: int) -> list[range]:
    """Divide a list of costs into contiguous ranges of about equal sums; some are empty if items
    are few.

    Item i goes to the part in which the middle of its stretch of the total cost lies.
    """
    total = sum(costs)
    share_of = []
    before = 0.0
    for cost in costs:
        share_of.append(min(int((before + cost / 2) * parts / total), parts - 1))
        before += cost
    bounds = [sum(share < part for share in share_of) for part in range(parts + 1)]
    return [range(bounds[part], bounds[part + 1]) for part in range(parts)]
