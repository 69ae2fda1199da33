"""Keys and values are all-gathered; queries stay where they are.

Right for any number of heads, and small with grouped-query attention. Only the own shard is kept
for the backward pass, which gathers again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.parallel.attention.blocks import AttentionGrads, OnlineSoftmax


def all_gather_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coordinates: Tensor,
    group: ProcessGroup,
    scale: float,
) -> Tensor:
    """Attention of this rank's shard to the whole sequence, [s, b, heads, d].

    Args:
        query: [s, b, heads, d].
        key: [s, b, groups, d]; value: the same shape.
        coordinates: int32 [b, s * cp, 3] on the CPU, in the order of the ranks' shards.
    """
    return _AllGatherAttention.apply(query, key, value, coordinates, group, scale)


class _AllGatherAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        coordinates: Tensor,
        group: ProcessGroup,
        scale: float,
    ) -> Tensor:
        keys, values = _gather(key, value, group).unbind(1)
        mine = coordinates.chunk(group.size(), dim=1)[group.rank()]
        attended = OnlineSoftmax(query)
        attended.update(query, keys, values, mine, coordinates, scale)
        output = attended.output.to(query.dtype)
        ctx.save_for_backward(query, key, value, coordinates, output, attended.logsumexp)
        ctx.group, ctx.scale = group, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, coordinates, output, logsumexp = ctx.saved_tensors
        group = ctx.group
        keys, values = _gather(key, value, group).unbind(1)
        mine = coordinates.chunk(group.size(), dim=1)[group.rank()]
        grads = AttentionGrads(query)
        everyones = grads.accumulate(
            grad, output, logsumexp, query, keys, values, mine, coordinates, ctx.scale
        )
        own = everyones.new_empty(key.shape[0], *everyones.shape[1:])
        dist.reduce_scatter_tensor(own, everyones, group=group)
        return *grads.result(own), None, None, None


def _gather(key: Tensor, value: Tensor, group: ProcessGroup) -> Tensor:
    """Two of [s, b, groups, d] -> [s * cp, 2, b, groups, d] in the order of the ranks."""
    own = torch.stack([key, value], dim=1)
    whole = own.new_empty(own.shape[0] * group.size(), *own.shape[1:])
    dist.all_gather_into_tensor(whole, own, group=group)
    return whole
