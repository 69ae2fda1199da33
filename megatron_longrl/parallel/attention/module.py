"""The attention module, and the mask that travels to it with a micro-batch."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.parallel.attention.all_gather import all_gather_attention
from megatron_longrl.parallel.attention.all_to_all import heads_to_sequence, sequence_to_heads
from megatron_longrl.parallel.attention.blocks import block_attention
from megatron_longrl.parallel.attention.dense import SHORT, dense_attention
from megatron_longrl.parallel.attention.ring import ring_attention
from megatron_longrl.parallel.attention.visibility import token_coordinates, visible
from megatron_longrl.parallel.sequence import gather_shards, shard_order


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
        For short rows the dense mask, bool [b, 1, s, s] (query, key) on ``device``. For others, and
        for the ring, the tokens' coordinates, int32 [b, s, 3]; they stay on the CPU, where blocks
        are planned.
    """
    coordinates = token_coordinates(branch_ids.cpu(), segment_ids)
    length = branch_ids.shape[1]
    if group.size() > 1:
        coordinates = coordinates.index_select(1, shard_order(length, group.size()))
        if cp_comm_type == "p2p":
            return coordinates
    if length > SHORT:
        return coordinates
    return visible(coordinates, coordinates)[:, None].to(device)


class MaskedAttention(torch.nn.Module):
    """Scaled dot-product attention under a mask, over MR-SP shards.

    Args:
        config: the transformer's configuration.
        cp_comm_type: how the ranks exchange keys and values.
        pg_collection: its ``cp`` group is the group over which sequences are sharded.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        assert pg_collection is not None, "MaskedAttention needs the process groups of its model"
        self.group = pg_collection.cp
        self.cp_comm_type = cp_comm_type or "all_gather"
        assert config.kv_channels is not None
        self.scale = softmax_scale or config.kv_channels**-0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [s, b, heads, d], this rank's shard.
            key: [s, b, groups, d]; value: the same shape.
            attention_mask: see :func:`attention_mask`. None: every key is seen.
            packed_seq_params: says which ranks share the sequence, see
                :func:`~megatron_longrl.parallel.sequence.row_sharing`; None: those of the module.

        Returns:
            [s, b, heads * d].
        """
        group = self.group if packed_seq_params is None else packed_seq_params.cp_group
        scale = self.scale
        if group is None or group.size() == 1:
            context = _attention(query, key, value, attention_mask, scale)
        elif self.cp_comm_type == "a2a":
            query, key, value = sequence_to_heads(query, key, value, group)
            context = _attention(query, key, value, attention_mask, scale)
            context = heads_to_sequence(context, group)
        elif self.cp_comm_type == "p2p":
            assert attention_mask is not None, "the ring wants coordinates"
            context = ring_attention(query, key, value, attention_mask, group, scale)
        elif attention_mask is None or attention_mask.dtype == torch.bool:
            mine = None
            if attention_mask is not None:
                mine = attention_mask.chunk(group.size(), dim=2)[group.rank()]
            key, value = gather_shards(torch.stack([key, value], dim=1), group).unbind(dim=1)
            context = dense_attention(query, key, value, mine, scale)
        else:
            context = all_gather_attention(query, key, value, attention_mask, group, scale)
        return context.flatten(2)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Of a whole sequence to itself, [s, b, heads, d]; a mask that is not dense is coordinates."""
    if mask is None or mask.dtype == torch.bool:
        return dense_attention(query, key, value, mask, scale)
    return block_attention(query, key, value, mask, scale)
