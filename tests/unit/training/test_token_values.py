"""Values of tokens go into shards and come back, whatever the packing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.token_values import (
    gather_by_rollout,
    response_sums,
    scatter_to_shards,
)
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
    logprobs = {r.key: r.logprobs for group in groups for r in group.rollouts}
    shards = [scatter_to_shards(batch, logprobs) for batch in batches]
    for batch, shard in zip(batches, shards, strict=True):
        assert (shard != 0).sum() == batch.selected.sum()
    back = gather_by_rollout(batches, shards, groups, ranks)
    assert back.keys() == logprobs.keys()
    assert all(torch.equal(back[key], values) for key, values in logprobs.items())


def test_sums_over_whole_responses() -> None:
    ranks: Any = alone()
    (batch,) = rl_batches(make_groups([[3, 2]]), make_config(), ranks)
    sums = response_sums(batch, torch.arange(1.0, 6.0))
    assert sums.tolist() == [6.0, 6.0, 6.0, 9.0, 9.0]
