"""Every two-rank layout, exchange and option gives loss and gradients of the one-process twin."""

import pytest

from tests.distributed.cases import ALL_CHOICES, TWO_RANKS, cases
from tests.distributed.layouts import check

HERE = "tests/distributed/test_matrix.py::test_loss_and_gradients"


@pytest.mark.parametrize("fields", cases(TWO_RANKS, ALL_CHOICES, HERE))
def test_loss_and_gradients(tiny_data, fields):
    check(tiny_data, **fields)
