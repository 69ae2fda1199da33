"""Masked attention over sharded sequences, for core's ``core_attention`` slot.

Queries stay where they are; keys and values are all-gathered over the MR-SP ranks (small with
grouped-query attention, and right for any number of heads). The mask says which key each query
sees: causal, packed or tree-shaped (several responses behind one prompt), see
:func:`megatron_longrl.data.collate.attention_allowed`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longrl.parallel.sequence import gather_shards

_EXPLICIT_PRODUCT_LIMIT = 512
"""Longest key sequence for which explicit products beat fused attention's backward on CPU."""


class MaskedAttention(torch.nn.Module):
    """Scaled dot-product attention under an explicit mask, over MR-SP shards.

    Args:
        config: the transformer's configuration.
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
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [s, b, heads, d], this rank's shard.
            key: [s, b, groups, d]; value: the same shape.
            attention_mask: bool [b, 1, s, s * cp], True where the query sees the key; keys in the
                order in which the ranks' shards are concatenated; [b, 1, s, s] where this rank has
                the whole sequence. None: every key is seen.

        Returns:
            [s, b, heads * d].
        """
        if attention_mask is None or attention_mask.shape[-1] > key.shape[0]:  # else whole here
            keys_values = gather_shards(torch.stack([key, value], dim=1), self.group)
            key, value = keys_values.unbind(dim=1)
        # [s, b, h, d] -> [b, h, s, d]
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if query.is_cuda or key.shape[2] > _EXPLICIT_PRODUCT_LIMIT:
            context = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=attention_mask,
                scale=self.scale,
                enable_gqa=True,
            )
        else:
            context = _explicit_attention(query, key, value, attention_mask, self.scale)
        return context.permute(2, 0, 1, 3).flatten(2)


def _explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Attention as two batched products; grouped heads share keys without copying them.

    Shapes: query [b, h, q, d], key and value [b, g, k, d], mask [b, 1, q, k] -> [b, h, q, d].
    """
    b, heads, q, d = query.shape
    groups = key.shape[1]
    grouped = query.reshape(b, groups, heads // groups * q, d)
    scores = torch.matmul(grouped, key.transpose(2, 3)).mul(scale).view(b, heads, q, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights.view(b, groups, heads // groups * q, -1), value).view(
        b, heads, q, d
    )
