"""Ulysses (https://arxiv.org/abs/2309.14509): shards of the sequence are exchanged for heads.

Each rank attends with its part of the heads over the whole sequence. Where there are fewer groups
of keys than ranks, a rank receives the one group that its heads need.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel.mappings import all_to_all
from torch import Tensor
from torch.distributed import ProcessGroup


def sequence_to_heads(
    query: Tensor, key: Tensor, value: Tensor, group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """A shard with all heads -> the whole sequence with this rank's heads.

    Args:
        query: [s, b, heads, d].
        key: [s, b, groups, d]; value: the same shape.

    Returns:
        [s * cp, b, heads / cp, d] and twice [s * cp, b, max(1, groups / cp), d], in the order of
        the ranks' shards.
    """
    ranks = group.size()
    heads, groups = query.shape[2], key.shape[2]
    if heads % ranks or (groups % ranks and ranks % groups):
        raise ValueError(f"{heads} heads in {groups} groups cannot be split over {ranks} ranks")
    if groups < ranks:
        key, value = (x.repeat_interleave(ranks // groups, dim=2) for x in (key, value))
    parts = [x.unflatten(2, (ranks, -1)) for x in (query, key, value)]
    sizes = [part.shape[3] for part in parts]
    # [s, b, cp, heads / cp + 2 * groups / cp, d] -> [cp, s, b, …, d]
    received = all_to_all(group, torch.cat(parts, dim=3).movedim(2, 0))
    whole = received.flatten(0, 1).split(sizes, dim=2)
    return whole[0], whole[1], whole[2]


def heads_to_sequence(context: Tensor, group: ProcessGroup) -> Tensor:
    """The inverse: [s * cp, b, heads / cp, d] -> [s, b, heads, d]."""
    received = all_to_all(group, context.unflatten(0, (group.size(), -1)))
    return received.movedim(0, 2).flatten(2, 3)
