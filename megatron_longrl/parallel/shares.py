"""Who decodes and encodes which frames: shares of equal cost, by pure functions of the videos."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np

from megatron_longrl.data.video import VideoSpec

Cut = Literal["auto", "always", "never"]
"""Whether a video is cut between ranks."""

Share = list[tuple[int, list[int]]]
"""(index of the video, positions among its frames), in order."""

_AS_GOOD = 1.02
"""Whole videos are preferred while their largest share is at most this much larger: a rank that
starts inside a video decodes from the key frame before it."""


_DECODED_PIXEL = 0.05
"""What decoding and resizing a pixel of the file costs beside encoding one of the tower's input.
A 1080p frame then costs half of what SigLIP-so400m at 448 pixels does with it."""


def frame_cost(spec: VideoSpec) -> float:
    """What a frame of a video costs the rank that owns it, decoded and encoded."""
    return spec.size**2 + _DECODED_PIXEL * spec.source_pixels


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


def deal(
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


def frame_shares(specs: Sequence[VideoSpec], parts: int, cut: Cut) -> list[Share]:
    """The frames of every rank, balanced by what they cost.

    Args:
        cut: ``auto`` keeps videos whole where that balances as well.
    """
    frames = [(v, f) for v, spec in enumerate(specs) for f in range(len(spec.frame_indices))]
    costs = [frame_cost(specs[v]) for v, _ in frames]
    spans = split_by_cost(costs, parts)
    if cut != "always":
        per_video = [frame_cost(spec) * len(spec.frame_indices) for spec in specs]
        dealt = deal(per_video, parts)
        largest = max(sum(per_video[v] for v in part) for part in dealt)
        bound = max(sum(costs[span.start : span.stop]) for span in spans)
        if cut == "never" or largest <= _AS_GOOD * bound:
            return [[(v, list(range(len(specs[v].frame_indices)))) for v in p] for p in dealt]
    shares = []
    for span in spans:
        share: dict[int, list[int]] = {}
        for v, f in frames[span.start : span.stop]:
            share.setdefault(v, []).append(f)
        shares.append(list(share.items()))
    return shares
