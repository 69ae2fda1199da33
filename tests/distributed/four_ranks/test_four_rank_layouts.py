"""Products of the dimensions: loss and gradients of the one-process twin."""

import pytest

from tests.distributed.cases import FOUR_RANKS, PAIRWISE, cases
from tests.distributed.layouts import check


# Every third case: each layout with each exchange, and the options in turn.
@pytest.mark.parametrize("fields", list(cases(FOUR_RANKS, PAIRWISE))[::3])
def test_loss_and_gradients(tiny_data, fields):
    check(tiny_data, **fields)
