"""Rows shared by all MR-SP ranks, by some of them and by none, in one step."""

import pytest

from megatron_longrl.planner.stages import plan_sequences
from megatron_longrl.training import batches
from tests.distributed.cases import EXCHANGES
from tests.distributed.layouts import check


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("shared_prompt", [True, False])
def test_loss_and_gradients(tiny_data, exchange, shared_prompt, monkeypatch):
    monkeypatch.setattr(batches, "plan_sequences", plan_sequences_for_four_two_and_one)
    fields = {"context_parallel_size": 4, "mrsp_mode": "auto"}
    check(tiny_data, **fields, cp_comm_type=exchange, shared_prompt=shared_prompt)


def plan_sequences_for_four_two_and_one(rows, *arguments, **keywords):
    """So little room on a rank that the longest row takes four, and another one two."""
    tokens = sorted({row.tokens for row in rows})
    plan = plan_sequences(rows, *arguments, **keywords | {"most_tokens": -(-tokens[-2] // 2)})
    used = {degree for degree, groups in plan.sequences.items() if any(groups)}
    assert used == {4, 2, 1}, (tokens, plan)
    return plan
