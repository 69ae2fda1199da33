"""The attention module, and the parameters that say which ranks share a micro-batch's rows."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.parallel.attention.all_gather import all_gather_attention
from megatron_longrl.parallel.attention.all_to_all import heads_to_sequence, sequence_to_heads
from megatron_longrl.parallel.attention.blocks import block_attention
from megatron_longrl.parallel.attention.dense import dense_attention
from megatron_longrl.parallel.attention.ring import ring_attention


def cp_packed_seq_params(group: ProcessGroup) -> PackedSeqParams:
    """Tells core's attention, ours or Transformer Engine's, which ranks share a micro-batch's rows.

    Transformer Engine's keeps the group that it was told last (core's
    extensions/transformer_engine.py:1345), so every micro-batch tells it. Rows are not packed as
    core understands it: its SelfAttention, too, goes by ``sbhd``.
    """
    size = group.size()
    return PackedSeqParams(
        qkv_format="sbhd", local_cp_size=size, cp_group=group if size > 1 else None
    )


class MaskedAttention(torch.nn.Module):
    """Scaled dot-product attention under a mask, over MR-SP shards.

    Args:
        config: the transformer's configuration.
        cp_comm_type: how the ranks exchange keys and values.
        pg_collection: the process groups; the group ``cp`` is the one over which sequences are
            sharded.
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
            attention_mask: see :func:`.mask.attention_mask`. None: every key is seen.
            packed_seq_params: says which ranks share the sequence, see
                :func:`cp_packed_seq_params`; None: those of the module.

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
            key, value = gather_from_sequence_parallel_region(
                torch.stack([key, value], dim=1), group=group
            ).unbind(dim=1)
            context = dense_attention(query, key, value, mine, scale)
        else:
            context = all_gather_attention(query, key, value, attention_mask, group, scale)
        return context.flatten(2)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Attend from a whole sequence to itself, [s, b, heads, d]; a mask that is not dense is
    coordinates."""
    if mask is None or mask.dtype == torch.bool:
        return dense_attention(query, key, value, mask, scale)
    return block_attention(query, key, value, mask, scale)
