"""What rows cost, against masks and modules that are counted; which rows are shared."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_longrl.data.collate import collate
from megatron_longrl.parallel.attention.visibility import token_coordinates, visible
from megatron_longrl.planner.cost import Machine, ModelCost, RowSize
from megatron_longrl.planner.stages import plan_rows
from tests.unit.training.made_up import make_config, make_prompt

COST = ModelCost(make_config())
PASSES = 4
FREE = Machine(flops=1e9, bandwidth=1e15, latency=0.0, kernel=0.0)
"""A machine on which exchanges cost nothing."""
SLOW = Machine(flops=1e9, bandwidth=1e5, latency=1.0, kernel=0.0)
"""A machine on which they cost more than any row."""


def plan(rows, stages="auto", ranks=2, machine=FREE, most_tokens=10**9):
    return plan_rows(
        rows, stages, ranks, cost=COST, machine=machine, passes=PASSES, most_tokens=most_tokens
    )


def row(tokens):
    return RowSize.of(tokens, [1])


@pytest.mark.parametrize(("prompt", "responses"), [(4, [3]), (9, [1, 5, 2]), (1, [1])])
def test_a_row_counts_the_tokens_and_pairs_of_its_mask(prompt, responses):
    batch = collate([make_prompt("p", prompt)], [[[7] * n for n in responses]], 1, 64)
    size = RowSize.of(prompt, responses)
    assert size.tokens == batch.tokens.shape[1]
    coordinates = token_coordinates(batch.branch_ids)
    assert size.pairs == int(visible(coordinates, coordinates).sum())
    assert size.predicted == int(batch.loss_mask.sum())


def test_linear_layers_and_logits_against_counted_products():
    config = make_config(num_query_groups=2)
    h, f, tokens, logits = config.hidden_size, config.ffn_hidden_size, 5, 3
    kv = config.num_query_groups * config.kv_channels
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        for _ in range(config.num_layers):
            x = torch.empty(tokens, h)
            for width in (h, kv, kv, h, f, f):
                x @ torch.empty(h, width)
            torch.empty(tokens, f) @ torch.empty(f, h)
        torch.empty(logits, h) @ torch.empty(h, config.padded_vocab_size(2000))
    assert ModelCost(config).forward(RowSize(tokens, 0, logits)) == counter.get_total_flops()


@pytest.mark.parametrize("stages", ["auto", "0", "1", "2"])
@pytest.mark.parametrize("lengths", [[], [50], [50, 40, 30], [9] * 7])
@pytest.mark.parametrize("machine", [FREE, SLOW])
def test_every_row_runs_once(stages, lengths, machine):
    result = plan([row(n) for n in lengths], stages, 2, machine)
    indices = [*result.shared, *itertools.chain(*result.dealt)]
    assert sorted(indices) == list(range(len(lengths)))
    if stages == "2":
        assert result.shared == list(range(len(lengths)))
    elif stages != "auto":
        assert result.shared == []


def test_one_row_is_shared_unless_the_exchange_costs_more():
    assert plan([row(500)], machine=FREE).shared == [0]
    assert plan([row(500)], machine=SLOW).shared == []


def test_rows_that_balance_are_dealt_and_a_rest_is_shared():
    some = Machine(flops=1e9, bandwidth=1e12, latency=1e-6, kernel=0.0)
    assert plan([row(500)] * 4, machine=some).dealt == [[0, 2], [1, 3]]
    odd = plan([row(500)] * 3, machine=some)
    assert len(odd.shared) == 1
    assert [len(part) for part in odd.dealt] == [1, 1]


def test_a_row_that_may_not_fit_on_one_rank_is_shared_whatever_it_costs():
    result = plan([row(100), row(300), row(90)], machine=SLOW, most_tokens=200)
    assert result.shared == [1]
    assert sorted(itertools.chain(*result.dealt)) == [0, 2]
