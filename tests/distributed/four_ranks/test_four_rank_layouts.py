"""Products of the dimensions: loss and gradients of the one-process twin."""

import pytest

from tests.distributed.cases import FOUR_RANKS, PAIRWISE, cases
from tests.distributed.layouts import check

HERE = "tests/distributed/four_ranks/test_four_rank_layouts.py::test_loss_and_gradients"


@pytest.mark.parametrize("fields", cases(FOUR_RANKS, PAIRWISE, HERE))
def test_loss_and_gradients(tiny_data, fields):
    check(tiny_data, **fields)
