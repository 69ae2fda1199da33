"""Films, their sound, and sound alone in products of the dimensions: loss and every gradient are
those of transformers' model on one process."""

from typing import Any

import pytest

from tests.distributed.cases import CP2, PP2, SP, TP2
from tests.distributed.families import check_family
from tests.runner.tiers import full_only

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2 with sequence parallelism x MR-SP2 a2a": TP2 | SP | CP2 | {"cp_comm_type": "a2a"},
    "PP2 x MR-SP2": PP2 | CP2,
    "DP2 x MR-SP2 p2p": CP2 | {"cp_comm_type": "p2p"},
    "MR-SP4": {"context_parallel_size": 4},
    "TP2 x PP2": TP2 | PP2,
    "TP2 x DP2, the tower too": TP2 | {"vision_tensor_parallel": True},
}


@pytest.mark.parametrize(
    "layout",
    full_only(
        "tests/distributed/four_ranks/test_four_rank_sound.py::test_loss_and_gradients",
        LAYOUTS,
        ["TP2 with sequence parallelism x MR-SP2 a2a"],
    ),
)
def test_loss_and_gradients(family_folder, layout):
    check_family(family_folder("qwen2_5_omni"), **LAYOUTS[layout])
