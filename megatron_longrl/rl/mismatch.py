"""The train-inference mismatch: how far the trainer's and the rollout engine's log-probabilities of
the same tokens are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.algorithms.correction import effective_sample_fraction, token_weights
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.token_values import gather_by_rollout

if TYPE_CHECKING:
    from megatron_longrl.parallel.groups import ParallelGroups

QUANTILE = 0.99


def mismatch_metrics(
    batches: Sequence[MicroBatch],
    log_ratios: Sequence[Tensor],
    rollout_groups: Sequence[RolloutGroup],
    pgs: ParallelGroups,
) -> dict[str, float]:
    """The metrics of all response tokens that a step has trained, over all replicas; collective
    over the world.

    ``rollout_corr/logprob_diff_mean``, ``_p99`` and ``_max`` describe the absolute difference of
    log-probabilities. ``rollout_corr/ess_token`` and ``rollout_corr/ess_sequence`` are the
    effective sample size of the importance weights exp(trainer - engine), of tokens and of whole
    rollouts, over their number.

    Args:
        batches: this rank's micro-batches that were trained.
        log_ratios: [t] of the selected tokens of each, as the policy loss has computed them: the
            trainer's log-probability less the engine's. Only the last pipeline stage has any.
        rollout_groups: the groups of this replica with the rollouts of ``batches``.
    """
    mine: list[Tensor] = []
    if log_ratios:
        # Of a rollout that MR-SP ranks share, each has a part.
        shards = [_shard(batch, values) for batch, values in zip(batches, log_ratios, strict=True)]
        found = gather_by_rollout(batches, shards, rollout_groups, pgs)
        if pgs.tp.rank() == 0 and pgs.cp.rank() == 0:
            mine = list(found.values())
    return mismatch_statistics(mine, pgs)


def _shard(batch: MicroBatch, values: Tensor) -> Tensor:
    """Scatter values [t] of the selected tokens to their positions in the micro-batch, [b, s /
    cp]."""
    shard = torch.zeros(batch.tokens.shape, device=values.device)
    shard[batch.selected] = values
    return shard


def mismatch_statistics(log_ratios: Sequence[Tensor], pgs: ParallelGroups) -> dict[str, float]:
    """The metrics of :func:`mismatch_metrics`; nothing where no rank has a rollout.

    Args:
        log_ratios: [tokens] of whole rollouts, none of which another rank has, too.
    """
    tokens = torch.cat([torch.zeros(0).double(), *(ratios.double() for ratios in log_ratios)])
    sums = torch.tensor([float(ratios.double().sum()) for ratios in log_ratios], dtype=torch.double)
    total_difference = float(tokens.abs().sum())
    largest = float(tokens.abs().max()) if len(tokens) else 0.0
    own = [total_difference, largest, *_weight_sums(tokens), *_weight_sums(sums)]
    everyone = gather_objects(pgs.gloo_group, own)
    rows = torch.tensor(everyone, dtype=torch.double)
    total, _, *weights = rows.sum(dim=0).tolist()
    count = int(weights[0])
    if count == 0:
        return {}
    return {
        "rollout_corr/logprob_diff_mean": total / count,
        "rollout_corr/logprob_diff_p99": _quantile(tokens.abs(), count, pgs),
        "rollout_corr/logprob_diff_max": float(rows[:, 1].max()),
        "rollout_corr/ess_token": _effective_fraction(*weights[:3]),
        "rollout_corr/ess_sequence": _effective_fraction(*weights[3:]),
    }


def _weight_sums(log_ratios: Tensor) -> tuple[float, float, float]:
    """Return the number of importance weights, their sum, and the sum of their squares."""
    weights = token_weights(log_ratios, math.inf)
    return len(weights), float(weights.sum()), float(weights.square().sum())


def _effective_fraction(count: float, weights: float, squares: float) -> float:
    """Return the effective sample size over the number of weights, at most 1, which rounding could
    exceed."""
    return min(effective_sample_fraction(weights, squares, count), 1.0)


def _quantile(values: Tensor, count: int, pgs: ParallelGroups) -> float:
    """Exact, interpolated as torch.quantile does; collective over the world.

    Every rank sends no more than its largest values down to the quantile, 1 % of all.

    Args:
        values: the values of this rank.
        count: the number of values of all ranks.
    """
    place = QUANTILE * (count - 1)
    below = math.floor(place)
    largest = values.topk(min(count - below, len(values))).values
    parts = gather_objects(pgs.gloo_group, largest)
    two = torch.cat(parts).sort(descending=True).values[: count - below].flip(0)[:2]
    return float(torch.lerp(two[0], two[-1], place - below))
