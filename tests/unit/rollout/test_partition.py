"""The partition of prompts over the engines of a replica."""

from __future__ import annotations

import pytest

from megatron_longrl.rollout.partition import balanced_ranges


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "costs", [[1.0] * 12, [1, 1, 1, 9], [9, 1, 1, 1], [5.0], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]
)
def test_shares_cover_everything_in_order_and_balance(costs: list[float], parts: int) -> None:
    shares = balanced_ranges(costs, parts)
    assert len(shares) == parts
    assert [item for share in shares for item in share] == list(range(len(costs)))
    sums = [sum(costs[item] for item in share) for share in shares]
    assert max(sums) <= sum(costs) / parts + max(costs)


def test_equal_prompts_are_split_equally() -> None:
    assert [len(share) for share in balanced_ranges([2.0] * 16, 4)] == [4, 4, 4, 4]
