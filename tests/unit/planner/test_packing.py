"""Bins that hold every item once, in the order that people expect."""

from __future__ import annotations

import random

import pytest

from megatron_longrl.planner.packing import fill_bins, split_group


@pytest.mark.parametrize(
    ("sizes", "capacity", "expected"),
    [
        ([], 5, []),
        ([3, 3, 3], 9, [[0, 1, 2]]),
        ([3, 3, 3], 5, [[0], [1], [2]]),
        ([2, 5, 3], 5, [[0, 2], [1]]),
        ([9, 1], 5, [[0], [1]]),
    ],
)
def test_written_out(sizes, capacity, expected):
    assert fill_bins(sizes, capacity) == expected


@pytest.mark.parametrize("seed", range(5))
def test_no_bin_overflows_and_two_never_fit_in_one(seed):
    generator = random.Random(seed)
    sizes = [generator.randint(1, 20) for _ in range(40)]
    bins = fill_bins(sizes, 20)
    loads = sorted(sum(sizes[i] for i in indices) for indices in bins)
    assert sorted(i for indices in bins for i in indices) == list(range(40))
    assert loads[-1] <= 20
    assert loads[0] + loads[1] > 20


def test_a_prompt_is_counted_once_a_row():
    assert split_group(11, [5, 5, 5, 5], 30) == [[0, 1, 2, 3]]
    assert split_group(11, [5, 5, 5, 5], 29) == [[0, 1, 2], [3]]
    # Too long for any row: alone, for the caller to name it.
    assert split_group(11, [5, 5], 12) == [[0], [1]]
