"""Attention in blocks merged by log-sum-exp, forward and backward.

Memory is linear in the sequence: a mask exists for one block at a time. Blocks that no query sees
    are skipped, blocks seen wholly carry no mask. Sums over blocks are kept in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.parallel.attention.flash import additive_mask, flash_backward, flash_forward
from megatron_longrl.parallel.attention.tree_mask import BlockKind, plan_blocks, tree_mask


class OnlineSoftmax:
    """The softmax of queries over the keys that they have seen so far; more keys can follow.

    Args:
        query: [s, b, heads, d].

    Attributes:
        output: float32 [s, b, heads, d].
        logsumexp: float32 [b, heads, s].
    """

    def __init__(self, query: Tensor) -> None:
        s, b, heads, _ = query.shape
        self.output = torch.zeros_like(
            query, dtype=torch.float32, memory_format=torch.contiguous_format
        )
        self.logsumexp = self.output.new_full((b, heads, s), -torch.inf)

    def update(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_coordinates: Tensor,
        key_coordinates: Tensor,
        scale: float,
    ) -> None:
        """Let the queries see these keys as well.

        Args:
            key: [k, b, groups, d]; value: the same shape.
            query_coordinates: int32 [b, s, 3] on the CPU; key_coordinates: [b, k, 3].
        """
        for row, queries, keys, mask, causal in _pieces(
            query_coordinates, key_coordinates, query.dtype, query.device
        ):
            output, logsumexp = flash_forward(
                _heads_first(query, row, queries),
                _heads_first(key, row, keys),
                _heads_first(value, row, keys),
                mask,
                causal,
                scale,
            )
            before = self.logsumexp[row, :, queries]  # [heads, q]
            merged = torch.logaddexp(before, logsumexp[0])
            total = _heads_first(self.output, row, queries)[0]  # [heads, q, d]
            total.mul_((before - merged).exp_()[..., None])
            total.addcmul_(output[0], (logsumexp[0] - merged).exp_()[..., None])
            before.copy_(merged)


class AttentionGrads:
    """Sums of gradients over blocks.

    Attributes:
        query: float32 [s, b, heads, d].
    """

    def __init__(self, query: Tensor) -> None:
        self._dtype = query.dtype
        self.query = torch.zeros_like(
            query, dtype=torch.float32, memory_format=torch.contiguous_format
        )

    def accumulate(
        self,
        grad: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_coordinates: Tensor,
        key_coordinates: Tensor,
        scale: float,
    ) -> Tensor:
        """Add the gradients through these keys; arguments as in :meth:`OnlineSoftmax.update`.

        Args:
            grad: the gradient of the output over all keys.
            output: [s, b, heads, d], and logsumexp: [b, heads, s], over all keys.

        Returns:
            Gradients of key and value, float32 [k, 2, b, groups, d].
        """
        grad = grad.contiguous()
        grad_key_value = self.query.new_zeros(key.shape[0], 2, *key.shape[1:])
        for row, queries, keys, mask, causal in _pieces(
            query_coordinates, key_coordinates, query.dtype, query.device
        ):
            grads = flash_backward(
                _heads_first(grad, row, queries),
                _heads_first(query, row, queries),
                _heads_first(key, row, keys),
                _heads_first(value, row, keys),
                _heads_first(output, row, queries),
                logsumexp[row : row + 1, :, queries],
                mask,
                causal,
                scale,
            )
            _heads_first(self.query, row, queries).add_(grads[0])
            _heads_first(grad_key_value[:, 0], row, keys).add_(grads[1])
            _heads_first(grad_key_value[:, 1], row, keys).add_(grads[2])
        return grad_key_value

    def result(self, grad_key_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value in the query's dtype.

        Args:
            grad_key_value: [k, 2, b, groups, d].
        """
        grad_key, grad_value = grad_key_value.to(self._dtype).unbind(1)
        return self.query.to(self._dtype), grad_key, grad_value


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, coordinates: Tensor, scale: float
) -> Tensor:
    """Attention of a whole sequence to itself, [s, b, heads, d].

    Args:
        query: [s, b, heads, d].
        key: [s, b, groups, d]; value: the same shape.
        coordinates: int32 [b, s, 3] on the CPU.
    """
    return _BlockAttention.apply(query, key, value, coordinates, scale)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, coordinates: Tensor, scale: float
    ) -> Tensor:
        attended = OnlineSoftmax(query)
        attended.update(query, key, value, coordinates, coordinates, scale)
        output = attended.output.to(query.dtype)
        ctx.save_for_backward(query, key, value, coordinates, output, attended.logsumexp)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, coordinates, output, logsumexp = ctx.saved_tensors
        grads = AttentionGrads(query)
        grad_key_value = grads.accumulate(
            grad, output, logsumexp, query, key, value, coordinates, coordinates, ctx.scale
        )
        return *grads.result(grad_key_value), None, None


def _pieces(
    query_coordinates: Tensor, key_coordinates: Tensor, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[int, slice, slice, Tensor | None, bool]]:
    """Yield the computations: row of the batch, queries, keys, mask [1, 1, q, k], and whether it is
    causal."""
    for row, (query, key) in enumerate(zip(query_coordinates, key_coordinates, strict=True)):
        for block in plan_blocks(query, key):
            for run in block.runs:
                mask = None
                if run.kind is BlockKind.MASKED:
                    sides = (query[block.queries].to(device), key[run.keys].to(device))
                    mask = additive_mask(tree_mask(*sides), dtype)
                yield row, block.queries, run.keys, mask, run.kind is BlockKind.CAUSAL


def _heads_first(tensor: Tensor, row: int, span: slice) -> Tensor:
    """A view [1, heads, span, d] of one row's tokens of [s, b, heads, d]."""
    return tensor[span, row].transpose(0, 1)[None]
