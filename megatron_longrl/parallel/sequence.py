"""MR-SP stage 2: sequences sharded over the MR-SP (context-parallel) ranks in zigzag order.

A sequence padded to a multiple of ``2 * cp`` is cut into ``2 * cp`` chunks; rank r owns chunks r
and 2cp-1-r. Under a causal mask every rank then has the same work. This is megatron-core's and
Transformer Engine's layout (megatron/core/utils.py, ``get_batch_on_this_cp_rank``).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def zigzag_indices(length: int, cp_size: int, cp_rank: int) -> Tensor:
    """Positions in the whole sequence that a rank owns, in its local order.

    Args:
        length: padded sequence length, a multiple of ``2 * cp_size``.

    Returns:
        int64 [length / cp_size].
    """
    if length % (2 * cp_size):
        raise ValueError(f"sequence length {length} is not a multiple of 2 * {cp_size}")
    chunks = torch.arange(length).view(2 * cp_size, -1)
    return torch.cat([chunks[cp_rank], chunks[2 * cp_size - 1 - cp_rank]])


def shard_order(length: int, cp_size: int) -> Tensor:
    """Positions in the whole sequence, in the order of the concatenated shards; int64 [length]."""
    return torch.cat([zigzag_indices(length, cp_size, rank) for rank in range(cp_size)])


def gathered_order(length: int, cp_size: int) -> Tensor:
    """Return the index of each token of the whole sequence in the concatenated shards.

    Returns:
        int64 [length]: ``concatenated[gathered_order] == whole``.
    """
    return torch.argsort(shard_order(length, cp_size))


def shard_sequence(tensor: Tensor, group: ProcessGroup, dim: int = 1) -> Tensor:
    """Return this rank's zigzag shard of a tensor whose dimension ``dim`` is the whole padded
    sequence."""
    if group.size() == 1:
        return tensor
    indices = zigzag_indices(tensor.shape[dim], group.size(), group.rank())
    return tensor.index_select(dim, indices.to(tensor.device)).contiguous()


def unshard_sequence(tensor: Tensor, group: ProcessGroup, dim: int = 1) -> Tensor:
    """The whole sequence from all ranks' shards, on every rank (no gradient)."""
    if group.size() == 1:
        return tensor
    shards = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(shards, tensor.contiguous(), group=group)
    order = gathered_order(tensor.shape[dim] * group.size(), group.size())
    return torch.cat(shards, dim=dim).index_select(dim, order.to(tensor.device))
