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
    from megatron_longrl.experience.rollouts import Rollout, RolloutGroup
    from megatron_longrl.parallel.groups import ParallelGroups
    from megatron_longrl.training.sharding import MicroBatch


def place(batch: MicroBatch, values: Sequence[Tensor]) -> Tensor:
    """float32 [b, s / cp] of a shard, 0 where nothing is predicted.

    Args:
        values: [tokens] of each of ``batch.rollouts``, in their order.
    """
    shard = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
    if not values:
        return shard
    flat = torch.cat([value.float() for value in values]).to(shard.device)
    starts = _starts([len(value) for value in values]).to(shard.device)
    chosen = batch.selected
    shard[chosen] = flat[starts[batch.response_index[chosen]] + batch.token_index[chosen]]
    return shard


def place_advantages(batches: Sequence[MicroBatch], groups: Sequence[RolloutGroup]) -> None:
    """Give every micro-batch the advantages of its responses."""
    by_response: dict[int, Tensor] = {}
    for group in groups:
        assert group.advantages is not None, "advantages come before they are placed"
        for response, values in zip(group.rollouts, group.advantages, strict=True):
            by_response[id(response)] = values.expand(len(response.token_ids))
    for batch in batches:
        batch.advantages = place(batch, [by_response[id(r)] for r in batch.rollouts])


def collect(
    batches: Sequence[MicroBatch],
    shards: Sequence[Tensor],
    rollouts: Sequence[RolloutGroup],
    groups: ParallelGroups,
) -> dict[int, Tensor]:
    """The inverse of :func:`place` over all MR-SP ranks; collective over them.

    Args:
        batches: all micro-batches of this rank with the responses of ``rollouts``.
        shards: [b, s / cp] of each.
        rollouts: the same on every rank of the replica.

    Returns:
        float32 [tokens] on the CPU by the ``id`` of each response; 0 where no rank has a token.
    """
    responses: list[Rollout] = [r for group in rollouts for r in group.rollouts]
    lengths = [len(response.token_ids) for response in responses]
    starts = dict(zip(map(id, responses), _starts(lengths).tolist(), strict=True))
    device = batches[0].tokens.device
    flat = torch.zeros(sum(lengths), device=device)
    for batch, shard in zip(batches, shards, strict=True):
        if not batch.rollouts:
            continue
        first = torch.tensor([starts[id(r)] for r in batch.rollouts], device=device)
        chosen = batch.selected
        flat[first[batch.response_index[chosen]] + batch.token_index[chosen]] = shard[chosen]
    parts = all_reduce_sum(flat, groups.cp).cpu().split(lengths)
    return dict(zip(map(id, responses), parts, strict=True))


def of_group(values: Mapping[int, Tensor], group: RolloutGroup) -> tuple[Tensor, ...]:
    """float64 [tokens] of each response of a group, from what :func:`collect` returned."""
    return tuple(values[id(response)].double() for response in group.rollouts)


def response_sums(batch: MicroBatch, values: Tensor) -> Tensor:
    """At every selected token the sum of ``values`` over its whole response.

    Collective over the ranks that share the micro-batch.

    Args:
        values: [t] of the selected tokens of this shard.
    """
    index = batch.response_index[batch.selected]
    sums = values.new_zeros(len(batch.response_lengths)).index_add_(0, index, values)
    return all_reduce_sum(sums, batch.sequence_group)[index]


def _starts(lengths: Sequence[int]) -> Tensor:
    """Where each of some stretches begins when they stand one behind the other."""
    return torch.tensor([0, *lengths]).cumsum(0)[: len(lengths)]
