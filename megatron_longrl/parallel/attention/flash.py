"""One block of flash attention that also returns its log-sum-exp, and its backward.

The backward takes the output and log-sum-exp of the *whole* softmax, of which the block's keys are
a part, and returns the block's exact share of the gradients. Heads of a group share their keys
without copies. The CPU operator supports grouped heads; the CUDA operator (memory-efficient
attention: any dtype, takes a mask) is given views instead. The CUDA half has not been run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ATEN = torch.ops.aten

MASKED_SCORE = -1e30
"""Value that the mask adds to a hidden score. It is finite: a query that sees no key of a block
gets a log-sum-exp near it, and so no weight when blocks are merged; the operators return 0 for
-inf."""

_CUDA_ALIGNMENT = 32
"""The CUDA operator's log-sum-exp is padded to a multiple of this."""


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """bool [q, k] -> the bias of the scores, [1, 1, q, k], with rows aligned as CUDA requires."""
    q, k = seen.shape
    rows = seen.new_zeros(q, -(-k // 16) * 16, dtype=dtype)
    return rows[:, :k].masked_fill_(~seen, MASKED_SCORE)[None, None]


def flash_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend to one block of keys.

    Args:
        query: [1, heads, q, d].
        key: [1, groups, k, d]; value: the same shape.
        mask: see :func:`additive_mask`.
        causal: query i sees keys 0..i.

    Returns:
        Output [1, heads, q, d] and log-sum-exp, float [1, heads, q].
    """
    if query.is_cuda:
        return _cuda_forward(query, key, value, mask, causal, scale)
    output, logsumexp = _ATEN._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return output, logsumexp


def flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value through one block; shapes as in :func:`flash_forward`."""
    if query.is_cuda:
        return _cuda_backward(grad, query, key, value, output, logsumexp, mask, causal, scale)
    grads = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, output, logsumexp, 0.0, causal, attn_mask=mask, scale=scale
    )
    return grads[0], grads[1], grads[2]


def _fold(heads: Tensor, groups: int) -> Tensor:
    """[1, groups * n, ...] -> [n, groups, ...]: a group's heads become the batch, a view."""
    return heads[0].unflatten(0, (groups, -1)).transpose(0, 1)


def _unfold(folded: Tensor) -> Tensor:
    """The inverse of :func:`_fold`."""
    return folded.transpose(0, 1).flatten(0, 1)[None]


def _cuda_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    folded = _fold(query, key.shape[1])
    n, groups, q, _ = folded.shape
    output, logsumexp, _, _ = _ATEN._scaled_dot_product_efficient_attention(
        folded,
        key.expand(n, -1, -1, -1),
        value.expand(n, -1, -1, -1),
        None if mask is None else mask.expand(n, groups, -1, -1),
        True,
        0.0,
        causal,
        scale=scale,
    )
    return _unfold(output), _unfold(logsumexp[..., :q])


def _cuda_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = key.shape[1]
    folded = _fold(query, groups)
    n, _, q, _ = folded.shape
    no_dropout = torch.zeros((), dtype=torch.long, device=query.device)
    grad_query, grad_key, grad_value, _ = _ATEN._scaled_dot_product_efficient_attention_backward(
        _fold(grad, groups),
        folded,
        key.expand(n, -1, -1, -1),
        value.expand(n, -1, -1, -1),
        None if mask is None else mask.expand(n, groups, -1, -1),
        _fold(output, groups),
        F.pad(_fold(logsumexp, groups), (0, -q % _CUDA_ALIGNMENT), value=torch.inf),
        no_dropout,
        no_dropout,
        0.0,
        [True, True, True, False],
        causal,
        scale=scale,
    )
    return (
        _unfold(grad_query),
        grad_key.sum(0, keepdim=True, dtype=torch.float32),
        grad_value.sum(0, keepdim=True, dtype=torch.float32),
    )
