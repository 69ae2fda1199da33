"""The zigzag layout."""

import pytest
import torch

from megatron_longrl.parallel.sequence import gathered_order, zigzag_indices


def test_rank_r_owns_chunks_r_and_its_mirror():
    assert zigzag_indices(8, 2, 0).tolist() == [0, 1, 6, 7]
    assert zigzag_indices(8, 2, 1).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shards_put_together_are_the_sequence(size):
    length = 24 if size == 3 else 16
    whole = torch.randn(length)
    shards = torch.cat([whole[zigzag_indices(length, size, rank)] for rank in range(size)])
    torch.testing.assert_close(shards[gathered_order(length, size)], whole, rtol=0, atol=0)


@pytest.mark.parametrize("size", [2, 4])
def test_causal_work_is_the_same_on_every_rank(size):
    work = {int((zigzag_indices(32, size, rank) + 1).sum()) for rank in range(size)}
    assert len(work) == 1


def test_a_length_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="10"):
        zigzag_indices(10, 2, 0)
