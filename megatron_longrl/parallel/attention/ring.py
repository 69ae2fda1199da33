"""Keys and values travel around the ring of ranks, one shard at a time.

While a rank attends to one shard, the next is on its way. Right for any number of heads; no rank
ever holds more than three shards. With the zigzag order all ranks have the same work in a round. In
the backward pass the gradients of keys and values travel one round behind them, growing, until they
are back where they belong. (Ring attention: https://arxiv.org/abs/2310.01889.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.parallel.attention.blocks import AttentionGrads, OnlineSoftmax


def ring_attention(
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
    return _RingAttention.apply(query, key, value, coordinates, group, scale)


class _RingAttention(torch.autograd.Function):
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
        ranks, rank = group.size(), group.rank()
        shards = coordinates.chunk(ranks, dim=1)
        attended = OnlineSoftmax(query)
        here = torch.stack([key, value], dim=1)  # [s, 2, b, groups, d]
        for step in range(ranks):
            coming = _Passing(here, group) if step < ranks - 1 else None
            owner = (rank - step) % ranks
            keys, values = here.unbind(1)
            attended.update(query, keys, values, shards[rank], shards[owner], scale)
            if coming is not None:
                here = coming.wait()
        output = attended.output.to(query.dtype)
        ctx.save_for_backward(query, key, value, coordinates, output, attended.logsumexp)
        ctx.group, ctx.scale = group, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, coordinates, output, logsumexp = ctx.saved_tensors
        group = ctx.group
        ranks, rank = group.size(), group.rank()
        shards = coordinates.chunk(ranks, dim=1)
        grads = AttentionGrads(query)
        here = torch.stack([key, value], dim=1)  # [s, 2, b, groups, d]
        following: _Passing | None = None
        for step in range(ranks):
            coming = _Passing(here, group) if step < ranks - 1 else None
            owner = (rank - step) % ranks
            keys, values = here.unbind(1)
            share = grads.accumulate(
                grad,
                output,
                logsumexp,
                query,
                keys,
                values,
                shards[rank],
                shards[owner],
                ctx.scale,
            )
            if following is not None:
                share += following.wait()
            following = _Passing(share, group)
            if coming is not None:
                here = coming.wait()
        assert following is not None
        return *grads.result(following.wait()), None, None, None


class _Passing:
    """A tensor on its way to the next rank, and the previous rank's on its way here."""

    def __init__(self, tensor: Tensor, group: ProcessGroup) -> None:
        self._sent = tensor.contiguous()
        self._received = torch.empty_like(self._sent)
        ranks, rank = group.size(), group.rank()
        after, before = (rank + 1) % ranks, (rank - 1) % ranks
        self._works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, self._sent, group=group, group_peer=after),
                dist.P2POp(dist.irecv, self._received, group=group, group_peer=before),
            ]
        )

    def wait(self) -> Tensor:
        """The previous rank's tensor."""
        for work in self._works:
            work.wait()
        return self._received
