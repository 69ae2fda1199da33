"""Values of tokens go into shards and come back, whatever the packing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.token_values import collect, place, response_sums
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import alone, make_groups

LENGTHS = [[3, 7], [1, 2], [5, 5], [8, 1]]


@pytest.mark.parametrize("shared_prompt", [True, False])
@pytest.mark.parametrize("packing", [True, False])
def test_values_go_in_and_come_back(shared_prompt: bool, packing: bool) -> None:
    config = make_config(
        shared_prompt=shared_prompt, use_sequence_packing=packing, micro_batch_size=2
    )
    groups, ranks = make_groups(LENGTHS), alone()
    batches = rl_batches(groups, config, ranks)
    shards = [place(batch, [r.logprobs for r in batch.rollouts]) for batch in batches]
    for batch, shard in zip(batches, shards, strict=True):
        assert (shard != 0).sum() == batch.selected.sum()
    back = collect(batches, shards, groups, ranks)
    for group in groups:
        for response in group.rollouts:
            assert torch.equal(back[id(response)], response.logprobs)


def test_sums_over_whole_responses() -> None:
    ranks: Any = alone()
    (batch,) = rl_batches(make_groups([[3, 2]]), make_config(), ranks)
    sums = response_sums(batch, torch.arange(1.0, 6.0))
    assert sums.tolist() == [6.0, 6.0, 6.0, 9.0, 9.0]
