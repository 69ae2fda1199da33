"""Masked attention on one rank against a softmax over repeated heads in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longrl.parallel.attention import blocks, dense
from megatron_longrl.parallel.attention.dense import MAX_DENSE_KEYS
from megatron_longrl.parallel.attention.mask import attention_mask
from megatron_longrl.parallel.attention.module import MaskedAttention, cp_packed_seq_params
from tests.unit.training.made_up import FakeGroup

BATCH, HEADS, CHANNELS = 2, 4, 6


def draw(length: int, groups: int) -> list[Tensor]:
    """Query [s, b, heads, d], key and value [s, b, groups, d]."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(length, BATCH, n, CHANNELS, generator=generator).requires_grad_()
        for n in (HEADS, groups, groups)
    ]


def branches(length: int) -> Tensor:
    """[b, s]: two rows with a prompt, responses and padding of different lengths."""
    rows = torch.full((BATCH, length), -1)
    for row, cuts in zip(rows, ((0.3, 0.6, 0.8), (0.5, 0.55, 1.0)), strict=True):
        prompt, first, second = (round(cut * length) for cut in cuts)
        row[:prompt], row[prompt:first], row[first:second] = 0, 1, 2
    return rows


def tree_mask(length: int) -> Tensor:
    """bool [b, 1, s, s], pair by pair from what a branch is."""
    rows = branches(length)
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = rows[:, :, None], rows[:, None, :]
    sees = earlier & (key >= 0) & ((key == 0) | (key == query)) & (query >= 0)
    return (sees | torch.eye(length, dtype=torch.bool))[:, None]


def plain(inputs: list[Tensor], mask: Tensor | None, scale: float) -> Tensor:
    """[s, b, heads * d], head by head."""
    query, key, value = inputs
    heads = []
    for head in range(HEADS):
        group = head * key.shape[2] // HEADS
        q, k, v = query[:, :, head].double(), key[:, :, group].double(), value[:, :, group].double()
        scores = torch.einsum("qbd,kbd->bqk", q, k) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask[:, 0], -torch.inf)
        heads.append(torch.einsum("bqk,kbd->qbd", scores.softmax(dim=-1), v))
    return torch.cat(heads, dim=-1)


def build(group: Any, groups: int, scale: float | None) -> MaskedAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * CHANNELS,
        num_attention_heads=HEADS,
        num_query_groups=groups,
        kv_channels=CHANNELS,
    )
    return MaskedAttention(
        config,
        layer_number=1,
        attn_mask_type=AttnMaskType.arbitrary,
        attention_type="self",
        softmax_scale=scale,
        pg_collection=SimpleNamespace(cp=group),
    )


def short_and_long(alone, length: int) -> Tensor:
    """The mask as a micro-batch has it, dense or as coordinates."""
    mask = attention_mask(branches(length), alone, "all_gather", torch.device("cpu"))
    assert (mask.dtype == torch.bool) == (length <= MAX_DENSE_KEYS)
    return mask


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [13, MAX_DENSE_KEYS, MAX_DENSE_KEYS + 1])
def test_values_and_gradients(alone, monkeypatch, length, groups, masked):
    called: list[str] = []
    for module, name in ((dense, "_explicit_attention"), (blocks, "flash_forward")):
        monkeypatch.setattr(module, name, counted(getattr(module, name), called))
    mask = short_and_long(alone, length) if masked else None
    ours, theirs = draw(length, groups), draw(length, groups)
    context = build(alone, groups, None)(*ours, mask)
    # Each side of the limit takes its own branch.
    expected_calls = {"_explicit_attention"} if length <= MAX_DENSE_KEYS else {"flash_forward"}
    assert set(called) == (expected_calls if masked or length <= MAX_DENSE_KEYS else set())
    expected = plain(theirs, tree_mask(length) if masked else None, CHANNELS**-0.5)
    torch.testing.assert_close(context.double(), expected, rtol=1e-5, atol=2e-6)
    factors = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (context * factors).sum().backward()
    (expected * factors).sum().backward()
    for leaf, twin in zip(ours, theirs, strict=True):
        assert twin.grad is not None and twin.grad.abs().max() > 1e-2
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-4, atol=5e-6)


def counted(function, called):
    """The function, noting its name where it is called."""

    def noting(*args):
        called.append(function.__name__)
        return function(*args)

    return noting


@pytest.mark.parametrize("length", [9, MAX_DENSE_KEYS + 1])
def test_a_given_scale(alone, length):
    inputs = draw(length, 2)
    context = build(alone, 2, 0.9)(*inputs, None)
    torch.testing.assert_close(context.double(), plain(inputs, None, 0.9), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("length", [40, MAX_DENSE_KEYS + 1])
def test_what_the_mask_hides_has_no_influence(alone, length):
    query, key, value = draw(length, 2)
    mask = short_and_long(alone, length)
    module = build(alone, 2, None)
    before = module(query, key, value, mask)
    hidden = ~tree_mask(length)[0, 0, length // 4]  # seen from a prompt token of row 0
    assert hidden.any()
    with torch.no_grad():
        key[hidden, 0] += 7.0
        value[hidden, 0] -= 7.0
    after = module(query, key, value, mask)
    torch.testing.assert_close(after[length // 4, 0], before[length // 4, 0], rtol=0, atol=0)
    assert (after[:, 0] - before[:, 0]).abs().max() > 1


def test_attention_is_told_who_shares_a_row():
    one: Any = FakeGroup(0, 1)
    group: Any = FakeGroup(0, 2)
    whole, shared = cp_packed_seq_params(one), cp_packed_seq_params(group)
    assert (whole.qkv_format, whole.local_cp_size, whole.cp_group) == ("sbhd", 1, None)
    assert (shared.qkv_format, shared.local_cp_size, shared.cp_group) == ("sbhd", 2, group)
