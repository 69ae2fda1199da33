"""Values of response tokens: between whole responses and the shards of micro-batches.

Advantages, values and rewards by token are computed on whole responses; the passes of the model
give and take them in shards. A shard names its responses and each token's place in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.parallel.sums import all_reduce_sum

if TYPE_CHECKING:
    from megatron_longrl.experience.rollouts import RolloutGroup, RolloutKey
    from megatron_longrl.parallel.groups import ParallelGroups
    from megatron_longrl.training.sharding import MicroBatch


ByRollout = Mapping["RolloutKey", Tensor]
"""[tokens] of a rollout by its key."""


def scatter_to_shards(batch: MicroBatch, values: ByRollout) -> Tensor:
    """float32 [b, s / cp] of a shard, 0 where nothing is predicted.

    Args:
        values: the values of at least the rollouts of the micro-batch.
    """
    shard = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
    if not batch.rollouts:
        return shard
    own = [values[rollout.key] for rollout in batch.rollouts]
    flat = torch.cat([tokens.float() for tokens in own]).to(shard.device)
    offsets = _offsets([len(tokens) for tokens in own]).to(shard.device)
    chosen = batch.selected
    shard[chosen] = flat[offsets[batch.response_index[chosen]] + batch.token_index[chosen]]
    return shard


def gather_by_rollout(
    batches: Sequence[MicroBatch],
    shards: Sequence[Tensor],
    rollout_groups: Sequence[RolloutGroup],
    pgs: ParallelGroups,
) -> dict[RolloutKey, Tensor]:
    """The inverse of :func:`scatter_to_shards` over all MR-SP ranks; collective over them.

    Args:
        batches: all micro-batches of this rank with rollouts of these groups.
        shards: [b, s / cp] of each.
        rollout_groups: the same on every rank of the replica.

    Returns:
        float32 [tokens] of each rollout, on the CPU; 0 where no rank has a token.
    """
    rollouts = [rollout for group in rollout_groups for rollout in group.rollouts]
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    keys = [rollout.key for rollout in rollouts]
    offsets = dict(zip(keys, _offsets(lengths).tolist(), strict=True))
    device = batches[0].tokens.device
    flat = torch.zeros(sum(lengths), device=device)
    for batch, shard in zip(batches, shards, strict=True):
        if not batch.rollouts:
            continue
        first = torch.tensor([offsets[rollout.key] for rollout in batch.rollouts], device=device)
        chosen = batch.selected
        flat[first[batch.response_index[chosen]] + batch.token_index[chosen]] = shard[chosen]
    parts = all_reduce_sum(flat, pgs.cp).cpu().split(lengths)
    return dict(zip(keys, parts, strict=True))


def response_sums(batch: MicroBatch, values: Tensor) -> Tensor:
    """Return, at every selected token, the sum of ``values`` over its whole response.

    Collective over the ranks that share the micro-batch.

    Args:
        values: [t] of the selected tokens of this shard.
    """
    index = batch.response_index[batch.selected]
    sums = values.new_zeros(len(batch.response_lengths)).index_add_(0, index, values)
    return all_reduce_sum(sums, batch.sequence_group)[index]


def _offsets(lengths: Sequence[int]) -> Tensor:
    """Return the start of each of several concatenated stretches."""
    return torch.tensor([0, *lengths]).cumsum(0)[: len(lengths)]
