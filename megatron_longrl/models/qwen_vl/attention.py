"""Attention within frames, or within windows of frames, for core's ``core_attention`` slot."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class FrameAttention(torch.nn.Module):
    """Every patch sees all patches of its frame, or of its window.

    Args:
        windowed: whether ``attention_mask`` holds windows that bound what is seen.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        windowed: bool = False,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.windowed = windowed

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
            query: [s, b, heads, d]: the patches of b frames; key and value: the same shape.
            attention_mask: runs of windows, see
                :func:`~megatron_longrl.models.qwen_vl.grid.window_order`.

        Returns:
            [s, b, heads * d].
        """
        runs = [[1, query.shape[0]]]
        if self.windowed:
            assert attention_mask is not None, "windowed layers are told of the windows"
            runs = attention_mask.tolist()
        parts = []
        start = 0
        for count, size in runs:
            span = slice(start, start + count * size)
            # [count, s, b, heads, d] -> [count * b, heads, s, d]
            q, k, v = (
                tensor[span].unflatten(0, (count, size)).permute(0, 2, 3, 1, 4).flatten(0, 1)
                for tensor in (query, key, value)
            )
            context = F.scaled_dot_product_attention(q, k, v)
            context = context.unflatten(0, (count, -1)).permute(0, 3, 1, 2, 4)
            parts.append(context.flatten(0, 1).flatten(2))
            start = span.stop
        return torch.cat(parts) if len(parts) > 1 else parts[0]
