"""Shards of a micro-batch against indices written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_longrl.data.collate import collate
from megatron_longrl.parallel.attention.tree_mask import token_coordinates, tree_mask
from megatron_longrl.training.sharding import shard_batch
from tests.unit.training.made_up import FakeGroup, make_groups

CPU = torch.device("cpu")
OWNED = {
    1: [list(range(16))],
    2: [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]],
    4: [[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]],
}
"""Positions of the ranks, in zigzag order."""


def make_batch():
    """Two rows of 16 tokens with three and one responses."""
    groups = make_groups([[4, 1, 5], [6]])
    responses = [[r.token_ids.tolist() for r in group.rollouts] for group in groups]
    return collate([group.prompt for group in groups], responses, 16, 64)


@pytest.mark.parametrize(("size", "rank"), [(s, r) for s in OWNED for r in range(s)])
def test_every_field_is_cut_alike(size, rank):
    batch, mine = make_batch(), OWNED[size][rank]
    group: Any = FakeGroup(rank, size)
    shard = shard_batch(batch, group, "all_gather", CPU)
    for name in (
        "tokens",
        "position_ids",
        "labels",
        "loss_mask",
        "media_index",
        "response_index",
        "token_index",
    ):
        assert torch.equal(getattr(shard, name), getattr(batch, name)[:, mine]), name
    assert torch.equal(shard.selected, batch.loss_mask[:, mine] == 1)
    # The whole of every response, whichever part of it is here.
    assert shard.response_lengths.tolist() == [4, 1, 5, 6]


@pytest.mark.parametrize("size", OWNED)
def test_transformer_engine_gets_no_mask(size):
    groups = make_groups([[4], [6]])
    responses = [[r.token_ids.tolist() for r in group.rollouts] for group in groups]
    batch = collate([group.prompt for group in groups], responses, 16, 64)
    group: Any = FakeGroup(0, size)
    shard = shard_batch(batch, group, "all_gather", CPU, "transformer_engine")
    assert shard.attention_mask is None
    assert shard.sequence_group is group


def test_transformer_engine_refuses_a_tree():
    group: Any = FakeGroup()
    with pytest.raises(ValueError, match="several responses"):
        shard_batch(make_batch(), group, "all_gather", CPU, "transformer_engine")


@pytest.mark.parametrize("size", OWNED)
def test_the_mask_has_queries_and_keys_in_the_order_of_the_ranks(size):
    batch = make_batch()
    group: Any = FakeGroup(0, size)
    mask = shard_batch(batch, group, "all_gather", CPU).attention_mask
    assert mask is not None
    coordinates = token_coordinates(batch.branch_ids)
    whole = tree_mask(coordinates, coordinates)
    order = [position for owned in OWNED[size] for position in owned]
    assert mask.shape == (2, 1, 16, 16)
    for b in range(2):
        for q, query in enumerate(order):
            for k, key in enumerate(order):
                assert mask[b, 0, q, k] == whole[b, query, key], (b, query, key)
