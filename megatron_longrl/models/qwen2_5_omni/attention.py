"""Attention within the units of an audio tower, for core's ``core_attention`` slot."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class UnitAttention(torch.nn.Module):
    """Every state sees all states of its unit that are there."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        **unused: Any,
    ) -> None:
        super().__init__()

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
            query: [s, b, heads, d]: the states of b units; key and value: the same shape.
            attention_mask: bool [b, 1, 1, s], where states are; None where all of them are.

        Returns:
            [s, b, heads * d].
        """
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return context.permute(2, 0, 1, 3).flatten(2)
