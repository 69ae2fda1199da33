"""The mask that travels to the attention module with a micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.parallel.attention.dense import MAX_DENSE_KEYS
from megatron_longrl.parallel.attention.tree_mask import token_coordinates, tree_mask
from megatron_longrl.parallel.sequence import shard_order


def attention_mask(
    branch_ids: Tensor,
    group: ProcessGroup,
    cp_comm_type: str,
    device: torch.device,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """The mask of a micro-batch, the same on all ranks of ``group``, in the order of their shards.

    Args:
        branch_ids: [b, s] of the whole row: 0 prompt, 1..n responses, -1 padding.
        segment_ids: [b, s]; which packed sample a token belongs to.

    Returns:
        The dense mask, bool [b, 1, s, s] (query, key) on ``device``, for short rows. For others,
        and for the ring, the tokens' coordinates, int32 [b, s, 3]; they stay on the CPU, where
        blocks are planned.
    """
    coordinates = token_coordinates(branch_ids.cpu(), segment_ids)
    length = branch_ids.shape[1]
    if group.size() > 1:
        coordinates = coordinates.index_select(1, shard_order(length, group.size()))
        if cp_comm_type == "p2p":
            return coordinates
    if length > MAX_DENSE_KEYS:
        return coordinates
    return tree_mask(coordinates, coordinates)[:, None].to(device)
