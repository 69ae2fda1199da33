"""Which rows are shared, and between which ranks."""

from __future__ import annotations

import itertools

import pytest

from megatron_longrl.planner.cost import HardwareProfile, ModelCost, SequenceSize
from megatron_longrl.planner.stages import SequencePlan, plan_sequences
from tests.unit.made_up_config import make_config

COST = ModelCost(make_config())
PASSES = 4
FREE = HardwareProfile(flops=1e9, bandwidth=1e15, latency=0.0, kernel=0.0)
"""A machine on which exchanges cost nothing."""
SLOW = HardwareProfile(flops=1e9, bandwidth=1e5, latency=1.0, kernel=0.0)
"""A machine on which they cost more than any row."""


def plan(rows, mode="auto", degrees=(1, 2), hardware=FREE, most_tokens=10**9):
    """By number of ranks that share them, the rows of each group of ranks."""
    return plan_sequences(
        rows, mode, degrees, cost=COST, hardware=hardware, passes=PASSES, most_tokens=most_tokens
    ).sequences


def used(result):
    """The numbers of ranks that share any row."""
    return {degree for degree, groups in result.items() if any(groups)}


def row(tokens):
    return SequenceSize.of(tokens, [1])


@pytest.mark.parametrize("mode", ["auto", "none", "encode", "full"])
@pytest.mark.parametrize("degrees", [(1, 2), (1, 2, 4, 8), (1, 3, 6)])
@pytest.mark.parametrize("lengths", [[], [50], [50, 40, 30], [9] * 7])
@pytest.mark.parametrize("hardware", [FREE, SLOW])
def test_every_row_runs_once(mode, degrees, lengths, hardware):
    result = plan([row(n) for n in lengths], mode, degrees, hardware)
    assert list(result) == sorted(degrees, reverse=True)
    for degree, groups in result.items():
        assert len(groups) == degrees[-1] // degree
    indices = itertools.chain(*itertools.chain(*result.values()))
    assert sorted(indices) == list(range(len(lengths)))
    if mode == "full":
        assert used(result) <= {degrees[-1]}
    elif mode != "auto":
        assert used(result) <= {1}


def test_a_rank_meets_the_rows_of_its_groups_the_most_shared_first():
    result = SequencePlan({4: [[0]], 2: [[1], [2, 3]], 1: [[], [4], [], []]})
    assert list(result.of_rank(1)) == [(4, [0]), (2, [1]), (1, [4])]
    assert list(result.of_rank(2)) == [(4, [0]), (2, [2, 3]), (1, [])]


def test_one_row_is_shared_unless_the_exchange_costs_more():
    assert plan([row(500)], hardware=FREE)[2] == [[0]]
    assert plan([row(500)], hardware=SLOW)[2] == [[]]


def test_rows_that_balance_are_dealt_and_a_rest_is_shared():
    some = HardwareProfile(flops=1e9, bandwidth=1e12, latency=1e-6, kernel=0.0)
    assert plan([row(500)] * 4, hardware=some)[1] == [[0, 2], [1, 3]]
    odd = plan([row(500)] * 3, hardware=some)
    assert len(odd[2][0]) == 1
    assert [len(part) for part in odd[1]] == [1, 1]


def test_as_many_ranks_share_a_row_as_there_are_for_it():
    some = HardwareProfile(flops=1e9, bandwidth=1e12, latency=1e-6, kernel=0.0)
    # Two rows for eight ranks: four ranks each, not all eight one row after the other.
    assert plan([row(500)] * 2, degrees=(1, 2, 4, 8), hardware=some)[4] == [[0], [1]]
    # One that is four times as expensive as each of the four others.
    mixed = plan([row(1000), *[row(10)] * 4], degrees=(1, 2, 4, 8), hardware=some)
    assert 0 in mixed[8][0] + mixed[4][0] + mixed[4][1]


def test_a_row_gets_as_many_ranks_as_it_may_need_whatever_that_costs():
    result = plan([row(100), row(300), row(90)], hardware=SLOW, most_tokens=200)
    assert result[2] == [[1]]
    assert sorted(itertools.chain(*result[1])) == [0, 2]
    rows = [row(n) for n in (790, 390, 190, 90)]
    result = plan(rows, degrees=(1, 2, 4, 8), hardware=SLOW, most_tokens=100)
    assert [list(itertools.chain(*groups)) for groups in result.values()] == [[0], [1], [2], [3]]
