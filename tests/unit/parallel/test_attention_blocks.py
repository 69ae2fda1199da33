"""Planned blocks against the dense mask, and merged blocks against a softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_longrl.parallel.attention import blocks
from megatron_longrl.parallel.attention.blocks import block_attention
from megatron_longrl.parallel.attention.tree_mask import (
    BlockKind,
    plan_blocks,
    token_coordinates,
    tree_mask,
)
from megatron_longrl.parallel.sequence import shard_order

SCALE = 0.3


def row(*segments: tuple[int, ...], padding: int = 0) -> Tensor:
    """Coordinates [s, 3] of packed samples: (prompt length, response lengths …) each."""
    branch = [b for lengths in segments for b, n in enumerate(lengths) for _ in range(n)]
    segment = [i for i, lengths in enumerate(segments) for _ in range(sum(lengths))]
    rows = torch.tensor([branch + [-1] * padding])
    return token_coordinates(rows, torch.tensor([segment + [0] * padding]))[0]


ROWS = {
    "causal": row((97,)),
    "prompt and response": row((40, 57)),
    "tree": row((50, 3, 20, 1, 31), padding=7),
    "packed": row((20, 5), (31,), (9, 4, 4), padding=2),
    "much padding": row((5, 3), padding=60),
    "short responses": row((70, 2, 3, 1, 2, 3)),
}


def slow_visible(query: list[int], key: list[int]) -> bool:
    """By the words of the definition."""
    if query[0] < 0 or key[0] < 0:
        return query == key
    return query[0] == key[0] and key[1] in (0, query[1]) and key[2] <= query[2]


@pytest.mark.parametrize("name", ROWS)
def test_dense_mask(name):
    tokens = ROWS[name]
    expected = [[slow_visible(q, k) for k in tokens.tolist()] for q in tokens.tolist()]
    assert tree_mask(tokens, tokens).tolist() == expected


@pytest.mark.parametrize("size", [1, 7, 16, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", ROWS)
def test_plan_is_the_dense_mask(name, ranks, size):
    whole = ROWS[name]
    whole = whole[: len(whole) // (2 * ranks) * 2 * ranks]
    key = whole[shard_order(len(whole), ranks)] if ranks > 1 else whole
    for query in key.chunk(ranks):
        seen = tree_mask(query, key)
        planned = torch.zeros_like(seen)
        for block in plan_blocks(query, key, size):
            for run in block.runs:
                here = seen[block.queries, run.keys]
                planned[block.queries, run.keys] = here
                if run.kind is BlockKind.FULL:
                    assert here.all()
                if run.kind is BlockKind.CAUSAL:
                    assert here.equal(torch.ones_like(here).tril())
                if run.kind is BlockKind.MASKED:
                    assert max(here.shape) <= size
        # Nothing that is seen was left out.
        assert planned.equal(seen)


def kinds(tokens: Tensor, size: int) -> list[BlockKind]:
    return [run.kind for block in plan_blocks(tokens, tokens, size) for run in block.runs]


def test_causal_blocks_need_no_mask():
    for tokens in (row((64,)), row((20, 44)), row((64,), (64,))):
        assert BlockKind.MASKED not in kinds(tokens, 16)
    # One run of all earlier keys, and the diagonal.
    assert kinds(row((64,)), 16).count(BlockKind.CAUSAL) == 4
    assert kinds(row((64,)), 16).count(BlockKind.FULL) == 3


def test_responses_do_not_meet_each_other():
    tokens = row((64, 32, 32, 32))
    runs = [block.runs for block in plan_blocks(tokens, tokens, 32)]
    # Every response meets the whole prompt in one run, and itself.
    for response in runs[2:]:
        assert [run.kind for run in response] == [BlockKind.FULL, BlockKind.CAUSAL]
        assert response[0].keys == slice(0, 64)


def draw(
    length: int, heads: int, groups: int, batch: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(length, batch, n, 6) for n in (heads, groups, groups)]
    query, key, value = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def plain(query: Tensor, key: Tensor, value: Tensor, coordinates: Tensor) -> Tensor:
    """[s, b, heads, d] in float64."""
    query, key, value = query.double(), key.double(), value.double()
    copies = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(copies, dim=2) for x in (key, value))
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) * SCALE
    hidden = ~tree_mask(coordinates, coordinates)[:, None]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,kbhd->qbhd", weights, value)


@pytest.mark.parametrize("heads, groups", [(4, 2), (7, 1), (3, 3)])
@pytest.mark.parametrize("name", ROWS)
def test_values_and_gradients(name, heads, groups, monkeypatch):
    """Blocks of odd lengths; the second row of the batch has another mask."""
    monkeypatch.setattr(blocks, "plan_blocks", lambda query, key: plan_blocks(query, key, 11))
    first = ROWS[name]
    second = token_coordinates(torch.arange(len(first))[None] // 40)[0]
    coordinates = torch.stack([first, second])
    ours, theirs = (draw(len(first), heads, groups, 2) for _ in range(2))
    context = block_attention(*ours, coordinates, SCALE)
    expected = plain(*theirs, coordinates)
    torch.testing.assert_close(context.double(), expected, rtol=1e-5, atol=2e-6)
    factors = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (context * factors).sum().backward()
    (expected * factors).sum().backward()
    for leaf, twin in zip(ours, theirs, strict=True):
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-4, atol=5e-6)


def test_bfloat16_loses_no_more_than_its_precision():
    coordinates = row((700, 300, 500))[None]
    ours, theirs = (draw(1500, 4, 2, 1, torch.bfloat16) for _ in range(2))
    context, expected = block_attention(*ours, coordinates, SCALE), plain(*theirs, coordinates)
    torch.testing.assert_close(context.double(), expected, rtol=2e-2, atol=2e-2)
    context.float().square().sum().backward()
    expected.square().sum().backward()
    for leaf, twin in zip(ours, theirs, strict=True):
        assert leaf.grad is not None and twin.grad is not None
        assert leaf.grad.dtype == torch.bfloat16
        error = (leaf.grad.double() - twin.grad.double()).abs().max()
        assert error <= 2e-2 * twin.grad.abs().max()


def test_large_scores_keep_their_order():
    """Blocks whose log-sum-exps are hundreds apart merge without overflow."""
    coordinates = row((50,))[None]
    query, key, value = draw(50, 2, 1, 1)
    with torch.no_grad():
        key[:10] *= 500
    context = block_attention(query, key, value, coordinates, SCALE)
    expected = plain(query, key, value, coordinates)
    torch.testing.assert_close(context.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_have_equal_work_and_none_has_it_all_defect_14(ranks):
    """A long prompt with short responses: in zigzag order every rank meets as many keys."""
    tokens = row((4096 - 8 * 32, *[32] * 8))
    key = tokens[shard_order(len(tokens), ranks)]
    pairs = [int(tree_mask(query, key).sum()) for query in key.chunk(ranks)]
    assert max(pairs) <= 1.1 * sum(pairs) / ranks
