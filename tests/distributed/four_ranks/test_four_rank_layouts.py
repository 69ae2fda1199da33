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


@pytest.mark.parametrize("cp_comm_type", ["a2a", "p2p"])
@pytest.mark.parametrize("layout", ["TP2 with sequence parallelism x MR-SP2", "PP2 x MR-SP2"])
def test_exchange(shared_path, layout, cp_comm_type):
    check(shared_path, LAYOUTS[layout] | {"cp_comm_type": cp_comm_type})


def test_four_ranks_share_a_sequence(shared_path):
    check(shared_path, {"context_parallel_size": 4, "cp_comm_type": "p2p"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(shared_path, layout):
    check(shared_path, LAYOUTS[layout])
