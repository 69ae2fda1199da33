"""The operator that GPUs have, with its own shapes and a plain computation in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longrl.parallel.attention import flash

ATEN = torch.ops.aten


def on_meta(*arguments: Any) -> list[Any]:
    """The same shapes and types without content."""
    return [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]


def scores_of(
    query: Tensor, key: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """[b, h, q, k]."""
    scores = query @ key.transpose(-1, -2) * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores if bias is None else scores + bias


class Operators:
    """Stands for ``torch.ops.aten``: each call is checked by the operator's schema and shapes."""

    def _scaled_dot_product_efficient_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        compute_logsumexp: bool,
        dropout: float,
        causal: bool,
        *,
        scale: float,
    ) -> tuple[Tensor, Tensor, None, None]:
        assert compute_logsumexp and dropout == 0.0
        shapes = ATEN._scaled_dot_product_efficient_attention(
            *on_meta(query, key, value, bias, True, 0.0, causal), scale=scale
        )
        scores = scores_of(query, key, bias, causal, scale)
        output = scores.softmax(-1) @ value
        assert output.shape == shapes[0].shape
        logsumexp = torch.full(shapes[1].shape, -7.0)  # behind the queries is anything
        logsumexp[..., : query.shape[-2]] = scores.logsumexp(-1)
        return output, logsumexp, None, None

    def _scaled_dot_product_efficient_attention_backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        output: Tensor,
        logsumexp: Tensor,
        seed: Tensor,
        offset: Tensor,
        dropout: float,
        wanted: list[bool],
        causal: bool,
        *,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        assert dropout == 0.0 and wanted == [True, True, True, False]
        shapes = ATEN._scaled_dot_product_efficient_attention_backward(
            *on_meta(grad, query, key, value, bias, output, logsumexp, seed, offset),
            *(dropout, wanted, causal),
            scale=scale,
        )
        made = ATEN._scaled_dot_product_efficient_attention(
            *on_meta(query, key, value, bias, True, 0.0, causal), scale=scale
        )
        assert logsumexp.shape == made[1].shape, "as the forward operator makes it"
        rows = query.shape[-2]
        assert logsumexp[..., rows:].eq(torch.inf).all()
        scores = scores_of(query, key, bias, causal, scale)
        shares = (scores - logsumexp[..., :rows, None]).exp()  # of a block among others
        delta = (grad * output).sum(-1, keepdim=True)
        grad_scores = shares * (grad @ value.transpose(-1, -2) - delta)
        grads = (
            grad_scores @ key * scale,
            grad_scores.transpose(-1, -2) @ query * scale,
            shares.transpose(-1, -2) @ grad,
        )
        assert [g.shape for g in grads] == [s.shape for s in shapes[:3]]
        return (*grads, None)


@pytest.mark.parametrize("heads, groups", [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("kind", ["full", "causal", "masked"])
@pytest.mark.parametrize("rows", [32, 37])
def test_a_gpu_gives_what_a_cpu_gives(
    heads: int, groups: int, kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    columns = rows if kind == "causal" else 29
    query, grad = torch.randn(2, 1, heads, rows, 8)
    key, value = torch.randn(2, 1, groups, columns, 8)
    seen = torch.rand(rows, columns) < 0.6
    mask = flash.additive_mask(seen, torch.float32) if kind == "masked" else None
    block = (query, key, value, mask, kind == "causal", 0.3)
    output, logsumexp = flash.flash_forward(*block)
    # The softmax is over more keys than the block's.
    total = logsumexp + torch.rand(logsumexp.shape)
    whole = torch.randn(output.shape)
    around = (grad, query, key, value, whole, total, mask, kind == "causal", 0.3)
    expected = flash.flash_backward(*around)
    monkeypatch.setattr(flash, "_ATEN", Operators())
    torch.testing.assert_close(flash._cuda_forward(*block), (output, logsumexp), rtol=0, atol=2e-6)
    torch.testing.assert_close(flash._cuda_backward(*around), expected, rtol=0, atol=2e-5)
