"""Attention under a dense mask: fastest for short sequences and for many rows of no mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_DENSE_KEYS = 512
"""Longest key sequence for which explicit products beat fused attention's backward on CPU."""


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Attend, [s, b, heads, d].

    Args:
        query: [s, b, heads, d].
        key: [k, b, groups, d]; value: the same shape.
        mask: bool [b, 1, s, k], True where seen; None: every key is seen.
    """
    # [s, b, h, d] -> [b, h, s, d]
    query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    if query.is_cuda or key.shape[2] > MAX_DENSE_KEYS:
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
        )
    else:
        context = _explicit_attention(query, key, value, mask, scale)
    return context.permute(2, 0, 1, 3)


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
