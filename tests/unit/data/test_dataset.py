"""The order of samples follows from the seed and from how many were consumed, and nothing else."""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_longrl.data.dataset import RowSampler
from megatron_longrl.data.rows import Row

ROWS = [Row(str(k), "question", "A", "", (), "general", "text", f"t.jsonl:{k}") for k in range(7)]


def test_every_epoch_has_every_row_once() -> None:
    taken = RowSampler(ROWS, seed=3).take(0, 7 * 5)
    epochs = [taken[start : start + 7] for start in range(0, 35, 7)]
    assert all(Counter(row.uid for row in epoch).most_common(1)[0][1] == 1 for epoch in epochs)
    assert len({tuple(row.uid for row in epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("step", [1, 3, 7, 10])
def test_resuming_anywhere_gives_the_same_rows(shuffle: bool, step: int) -> None:
    """A new sampler at each position, as after a restart, and steps across epochs."""
    whole = RowSampler(ROWS, seed=3, shuffle=shuffle).take(0, 30)
    for consumed in range(30 - step):
        again = RowSampler(ROWS, seed=3, shuffle=shuffle).take(consumed, step)
        assert again == whole[consumed : consumed + step]


def test_going_back_is_possible() -> None:
    sampler = RowSampler(ROWS, seed=3)
    first = sampler.take(2, 9)
    sampler.take(50, 3)
    assert sampler.take(2, 9) == first


def test_seeds_differ_and_are_stable() -> None:
    orders = {seed: [row.uid for row in RowSampler(ROWS, seed).take(0, 7)] for seed in range(4)}
    assert len({tuple(order) for order in orders.values()}) > 1
    assert orders[2] == [row.uid for row in RowSampler(ROWS, 2).take(0, 7)]


def test_unshuffled_keeps_the_files_order() -> None:
    assert RowSampler(ROWS, seed=3, shuffle=False).take(5, 4) == [ROWS[k] for k in (5, 6, 0, 1)]
