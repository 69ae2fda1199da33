"""Who decodes and encodes which frames: shares of equal cost, by pure functions of the videos."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np

from megatron_longrl.media.modalities.video.spec import VideoSpec

Cut = Literal["auto", "always", "never"]
"""Whether a video is cut between ranks."""

UnitPartition = list[tuple[int, range]]
"""(index of the video, which of its units), in order. A unit is what the tower takes at once: a
frame, or the frames of a temporal patch."""

_AS_GOOD = 1.02
"""Whole videos are preferred while their largest share is at most this much larger: a rank that
starts inside a video decodes from the key frame before it."""


_DECODED_PIXEL = 0.05
"""What decoding and resizing a pixel of the file costs beside encoding one of the tower's input.
A 1080p frame then costs half of what SigLIP-so400m at 448 pixels does with it."""


def unit_cost(spec: VideoSpec) -> float:
    """What a unit of a video costs the rank that owns it, decoded and encoded."""
    view = spec.view
    frame = view.height * view.width + _DECODED_PIXEL * spec.source_pixels
    return view.frames_per_unit * frame


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
    """Indices of whole items for every part: the most expensive first, to who has least.

    Args:
        loads_before: of every part; by default none has any.
    """
    loads = [(load, part) for part, load in enumerate(loads_before or [0.0] * parts)]
    heapq.heapify(loads)
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, part = heapq.heappop(loads)
        dealt[part].append(index)
        heapq.heappush(loads, (load + costs[index], part))
    return [sorted(indices) for indices in dealt]


def partition_units(specs: Sequence[VideoSpec], parts: int, cut: Cut) -> list[UnitPartition]:
    """The units of every rank, balanced by what they cost.

    Args:
        cut: ``auto`` keeps videos whole where that balances as well.
    """
    owners = [v for v, spec in enumerate(specs) for _ in range(spec.num_units)]
    costs = [unit_cost(specs[v]) for v in owners]
    spans = split_by_cost(costs, parts)
    if cut != "always":
        per_video = [unit_cost(spec) * spec.num_units for spec in specs]
        dealt = balance_greedy(per_video, parts)
        largest = max(sum(per_video[v] for v in part) for part in dealt)
        bound = max(sum(costs[span.start : span.stop]) for span in spans)
        if cut == "never" or largest <= _AS_GOOD * bound:
            return [[(v, range(specs[v].num_units)) for v in part] for part in dealt]
    starts = np.concatenate([[0], np.cumsum([spec.num_units for spec in specs])]).astype(int)
    shares = []
    for span in spans:
        share: UnitPartition = []
        for v in range(len(specs)):
            first, last = max(span.start, starts[v]), min(span.stop, starts[v + 1])
            if first < last:
                share.append((v, range(int(first - starts[v]), int(last - starts[v]))))
        shares.append(share)
    return shares
