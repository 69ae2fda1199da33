"""The same on four ranks: products of the dimensions."""

import pytest

from tests.distributed.test_layouts import check

LAYOUTS = {
    "TP2 x MR-SP2": {"tensor_model_parallel_size": 2, "context_parallel_size": 2},
    "TP2 with sequence parallelism x MR-SP2": {
        "tensor_model_parallel_size": 2,
        "context_parallel_size": 2,
        "sequence_parallel": True,
    },
    "PP2 x MR-SP2": {"pipeline_model_parallel_size": 2, "context_parallel_size": 2},
    "DP2 x MR-SP2": {"context_parallel_size": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(shared_path, layout):
    check(shared_path, LAYOUTS[layout])
