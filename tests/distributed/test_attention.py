"""Attention over MR-SP shards equals attention on one rank, whatever is exchanged and how."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longrl.parallel.attention import mask as mask_module
from megatron_longrl.parallel.attention.mask import attention_mask
from megatron_longrl.parallel.attention.module import MaskedAttention
from megatron_longrl.parallel.attention.tree_mask import token_coordinates, tree_mask
from megatron_longrl.parallel.sequence import shard_sequence
from megatron_longrl.platforms import platform
from tests.runner.tiers import full_only

CHANNELS = 6
TOLERANCE = 1e-5


def build(cp_comm_type: str, heads: int, groups: int) -> MaskedAttention:
    platform.prepare()
    config = TransformerConfig(
        num_layers=1,
        hidden_size=heads * CHANNELS,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=CHANNELS,
    )
    return MaskedAttention(
        config,
        layer_number=1,
        attn_mask_type=AttnMaskType.arbitrary,
        attention_type="self",
        cp_comm_type=cp_comm_type,
        pg_collection=SimpleNamespace(cp=dist.group.WORLD),
    )


def packed_trees(length: int) -> tuple[Tensor, Tensor]:
    """Branch and segment ids [2, s]: two packed samples with responses; and one with padding."""
    branches, segments = torch.zeros(2, 2, length, dtype=torch.long)
    cuts = [round(part * length) for part in (0.2, 0.3, 0.4, 0.7, 0.75, 0.9)]
    for branch, (start, stop) in enumerate(itertools.pairwise(cuts), start=1):
        branches[1, start:stop] = branch
    branches[1, cuts[-1] :] = -1
    branches[0, cuts[0] : cuts[2]], branches[0, cuts[3] :] = 1, 1
    segments[0, cuts[2] :] = 1
    return branches, segments


def plain(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """[s, b, heads * d] of the whole sequence, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    copies = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(copies, dim=2) for x in (key, value))
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) * CHANNELS**-0.5
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhqk,kbhd->qbhd", weights, value).flatten(2)


def check(cp_comm_type: str, heads: int, groups: int, length: int) -> None:
    """Values and gradients of this rank's shard, for rows with trees, packing and padding."""
    group = dist.group.WORLD
    assert group is not None
    generator = torch.Generator().manual_seed(0)
    shapes = [(length, 2, n, CHANNELS) for n in (heads, groups, groups)]
    whole = [torch.randn(shape, generator=generator) for shape in shapes]
    factors = torch.randn(length, 2, heads * CHANNELS, generator=generator)
    branches, segments = packed_trees(length)

    query, key, value = theirs = [x.clone().requires_grad_() for x in whole]
    coordinates = token_coordinates(branches, segments)
    expected = plain(query, key, value, tree_mask(coordinates, coordinates))
    (expected * factors).sum().backward()

    ours = [shard_sequence(x, group, 0).requires_grad_() for x in whole]
    mask = attention_mask(branches, group, cp_comm_type, torch.device("cpu"), segments)
    context = build(cp_comm_type, heads, groups)(*ours, mask)
    (context * shard_sequence(factors, group, 0)).sum().backward()

    close(context, shard_sequence(expected, group, 0))
    for leaf, twin in zip(ours, theirs, strict=True):
        assert leaf.grad is not None and twin.grad is not None
        close(leaf.grad, shard_sequence(twin.grad, group, 0))


def close(ours: Tensor, expected: Tensor) -> None:
    error = (ours.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, float(error)


HEADS = [
    ("all_gather", 4, 2),
    ("all_gather", 7, 1),
    ("p2p", 4, 2),
    ("p2p", 7, 1),
    ("a2a", 4, 2),
    ("a2a", 4, 1),
    ("a2a", 4, 4),
]
LENGTHS = {"explicit products": 52, "coordinates": 1036}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("cp_comm_type, heads, groups", HEADS)
def test_equals_one_rank(cp_comm_type, heads, groups, length):
    check(cp_comm_type, heads, groups, length)


@pytest.mark.parametrize(
    "cp_comm_type",
    full_only(
        "tests/distributed/test_attention.py::test_longer_than_a_block",
        ["all_gather", "a2a", "p2p"],
        ["p2p"],
    ),
)
def test_longer_than_a_block(cp_comm_type):
    check(cp_comm_type, 2, 1, 4 * 1100)


@pytest.mark.parametrize("cp_comm_type", ["all_gather", "a2a", "p2p"])
def test_short_rows_in_blocks(cp_comm_type, monkeypatch):
    monkeypatch.setattr(mask_module, "MAX_DENSE_KEYS", 0)
    check(cp_comm_type, 4, 2, 52)


def test_heads_that_cannot_be_split():
    with pytest.raises(ValueError, match="7 heads in 1 groups cannot be split over"):
        check("a2a", 7, 1, 52)
