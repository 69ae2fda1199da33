"""Every model family trains in every layout as transformers' own model does on one process."""

from typing import Any

import pytest

from tests.distributed.cases import CP2, PP2, SP, TP2
from tests.distributed.families import check_family

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2 with sequence parallelism": TP2 | SP,
    "MR-SP2": CP2,
    "MR-SP2 p2p": CP2 | {"cp_comm_type": "p2p"},
    "PP2": PP2,
    "DP2": {},
}
TEXT = ("qwen2", "qwen3", "llama")
VISION = ("qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [*TEXT, *VISION])
def test_loss_and_gradients(family, layout, family_folder):
    check_family(family_folder(family), **LAYOUTS[layout])
