"""How far trainer and rollout engine are apart: the same tokens' log-probabilities by both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.algorithms.correction import effective_sample_share, token_weights
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.parallel.agree import gather_objects
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.token_values import collect

if TYPE_CHECKING:
    from megatron_longrl.parallel.groups import ParallelGroups

QUANTILE = 0.99


def gap_metrics(
    batches: Sequence[MicroBatch], groups: Sequence[RolloutGroup], ranks: ParallelGroups
) -> dict[str, float]:
    """Of all response tokens that a step has trained, over all replicas; collective over the world.

    ``gap/mean``, ``gap/p99`` and ``gap/max`` are of the absolute difference of log-probabilities,
    ``ess/token`` and ``ess/sequence`` the effective sample size of the importance weights
    exp(trainer - engine), of tokens and of whole responses, over their number.

    Args:
        batches: this rank's, after the policy's loss has seen them; only the last pipeline stage
            has it.
        groups: of this replica, with the responses of ``batches``.
    """
    mine: list[Tensor] = []
    seen = [batch for batch in batches if batch.gap is not None]
    if ranks.is_last_stage and seen:
        # Of a response that MR-SP ranks share, each has a part.
        found = collect(seen, [b.gap for b in seen if b.gap is not None], groups, ranks)
        if ranks.tp.rank() == 0 and ranks.cp.rank() == 0:
            mine = [found[id(response)] for group in groups for response in group.rollouts]
    return gap_statistics(mine, ranks)


def gap_statistics(gaps: Sequence[Tensor], ranks: ParallelGroups) -> dict[str, float]:
    """The metrics of :func:`gap_metrics`; nothing where no rank has a response.

    Args:
        gaps: [tokens] of whole responses, which no other rank tells of.
    """
    tokens = torch.cat([torch.zeros(0).double(), *(gap.double() for gap in gaps)])
    sums = torch.tensor([float(gap.double().sum()) for gap in gaps], dtype=torch.double)
    total_gap = float(tokens.abs().sum())
    largest = float(tokens.abs().max()) if len(tokens) else 0.0
    own = [total_gap, largest, *_weight_sums(tokens), *_weight_sums(sums)]
    everyone = gather_objects(ranks.control, own)
    rows = torch.tensor(everyone, dtype=torch.double)
    total, _, *weights = rows.sum(dim=0).tolist()
    count = int(weights[0])
    if count == 0:
        return {}
    return {
        "gap/mean": total / count,
        "gap/p99": _quantile(tokens.abs(), count, ranks),
        "gap/max": float(rows[:, 1].max()),
        "ess/token": _share(*weights[:3]),
        "ess/sequence": _share(*weights[3:]),
    }


def _weight_sums(log_ratios: Tensor) -> tuple[float, float, float]:
    """How many importance weights there are, their sum, and that of their squares."""
    weights = token_weights(log_ratios, math.inf)
    return len(weights), float(weights.sum()), float(weights.square().sum())


def _share(count: float, weights: float, squares: float) -> float:
    """At most 1, which rounding could pass."""
    return min(effective_sample_share(weights, squares, count), 1.0)


def _quantile(values: Tensor, count: int, ranks: ParallelGroups) -> float:
    """Exact, interpolated as torch.quantile does; collective over the world.

    Every rank sends no more than its largest values down to the quantile, 1 % of all.

    Args:
        values: those of this rank.
        count: those of all ranks.
    """
    place = QUANTILE * (count - 1)
    below = math.floor(place)
    largest = values.topk(min(count - below, len(values))).values
    parts = gather_objects(ranks.control, largest)
    two = torch.cat(parts).sort(descending=True).values[: count - below].flip(0)[:2]
    return float(torch.lerp(two[0], two[-1], place - below))
