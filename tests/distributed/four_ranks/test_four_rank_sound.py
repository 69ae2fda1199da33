"""Products of the dimensions, of a model that hears: loss and gradients of transformers' model."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.cases import CP2, FOUR_RANKS
from tests.distributed.families import check_family
from tests.runner.tiers import full_only

HERE = "tests/distributed/four_ranks/test_four_rank_sound.py::test_loss_and_gradients"
LAYOUTS: dict[str, dict[str, Any]] = {
    **FOUR_RANKS,
    "DP2 x MR-SP2 a2a": CP2 | {"cp_comm_type": "a2a"},
}


@pytest.mark.parametrize(
    "layout", full_only(HERE, LAYOUTS, first=["TP2 with sequence parallelism x MR-SP2"])
)
def test_loss_and_gradients(layout, family_folder):
    check_family(family_folder("qwen2_5_omni"), **LAYOUTS[layout])
