"""The partition of units over ranks, at equal cost, by pure functions of the media."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np

from megatron_longrl.media.spec import MediaSpec

Cut = Literal["auto", "always", "never"]
"""Whether a medium is cut between ranks."""

UnitPartition = list[tuple[int, range]]
"""The units of one rank: (index of the medium, which of its units), in order."""

_AS_GOOD = 1.02
"""Whole media are preferred while the most expensive part is at most this much more expensive: a
rank that starts inside a video decodes from the key frame before it."""


def split_by_cost(costs: Sequence[float], parts: int) -> list[range]:
    """Contiguous ranges of a list of costs, whose sums are as near to equal as a cut can be.

    With equal costs the lengths differ by at most one.
    """
    ends = np.concatenate([[0.0], np.cumsum(costs, dtype=np.float64)])
    targets = ends[-1] * np.arange(1, parts) / parts
    # The last cut that does not exceed the target, or the next one where that is nearer.
    low = np.searchsorted(ends, targets * (1 + 1e-12), side="right") - 1
    high = np.minimum(low + 1, len(costs))
    cuts = np.where(ends[high] - targets < targets - ends[low], high, low)
    bounds = [0, *np.maximum.accumulate(cuts).tolist(), len(costs)]
    return [range(bounds[part], bounds[part + 1]) for part in range(parts)]


def balance_greedy(
    costs: Sequence[float], parts: int, loads_before: Sequence[float] | None = None
) -> list[list[int]]:
    """Indices of whole items for every part: the most expensive first, to the part that has least
    (longest processing time first, LPT).

    Args:
        loads_before: the load of every part before the call; by default 0.
    """
    loads = [(load, part) for part, load in enumerate(loads_before or [0.0] * parts)]
    heapq.heapify(loads)
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, part = heapq.heappop(loads)
        dealt[part].append(index)
        heapq.heappush(loads, (load + costs[index], part))
    return [sorted(indices) for indices in dealt]


def partition_units(specs: Sequence[MediaSpec], parts: int, cut: Cut) -> list[UnitPartition]:
    """The units of every rank, balanced by their cost.

    Args:
        cut: ``auto`` keeps media whole where that balances as well.
    """
    owners = [m for m, spec in enumerate(specs) for _ in range(spec.num_units)]
    unit_costs = [spec.cost() for spec in specs]
    costs = [unit_costs[m] for m in owners]
    spans = split_by_cost(costs, parts)
    if cut != "always":
        per_medium = [spec.cost() * spec.num_units for spec in specs]
        dealt = balance_greedy(per_medium, parts)
        largest = max(sum(per_medium[m] for m in part) for part in dealt)
        bound = max(sum(costs[span.start : span.stop]) for span in spans)
        if cut == "never" or largest <= _AS_GOOD * bound:
            return [[(m, range(specs[m].num_units)) for m in part] for part in dealt]
    starts = np.concatenate([[0], np.cumsum([spec.num_units for spec in specs])]).astype(int)
    partitions = []
    for span in spans:
        partition: UnitPartition = []
        for m in range(len(specs)):
            first, last = max(span.start, starts[m]), min(span.stop, starts[m + 1])
            if first < last:
                partition.append((m, range(int(first - starts[m]), int(last - starts[m]))))
        partitions.append(partition)
    return partitions
