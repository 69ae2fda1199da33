"""Ulysses (https://arxiv.org/abs/2309.14509): shards of the sequence are exchanged for heads.

Each rank attends with its part of the heads over the whole sequence. Where there are fewer groups
of keys than ranks, a rank receives the one group that its heads need.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
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
    received = _AllToAll.apply(torch.cat(parts, dim=3).movedim(2, 0), group)
    whole = received.flatten(0, 1).split(sizes, dim=2)
    return whole[0], whole[1], whole[2]


def heads_to_sequence(context: Tensor, group: ProcessGroup) -> Tensor:
    """The inverse: [s * cp, b, heads / cp, d] -> [s, b, heads, d]."""
    received = _AllToAll.apply(context.unflatten(0, (group.size(), -1)), group)
    return received.movedim(0, 2).flatten(2, 3)


class _AllToAll(torch.autograd.Function):
    """Slice i of the first dimension goes to rank i, and comes from it; so does its gradient."""

    @staticmethod
    def forward(ctx: Any, slices: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(slices, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad, ctx.group), None


def _exchange(slices: Tensor, group: ProcessGroup) -> Tensor:
    slices = slices.contiguous()
    received = torch.empty_like(slices)
    dist.all_to_all_single(received, slices, group=group)
    return received
