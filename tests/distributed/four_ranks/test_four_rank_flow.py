"""Products of the dimensions, of flow-matching policies: loss and gradients of diffusers' model."""

from __future__ import annotations

from typing import Any

import pytest

from tests import tiny_sd3
from tests.distributed.flow_twin import check
from tests.runner.tiers import full_only

HERE = "tests/distributed/four_ranks/test_four_rank_flow.py::test_loss_and_gradients"
TP2: dict[str, Any] = {"tensor_model_parallel_size": 2}
CP2: dict[str, Any] = {"context_parallel_size": 2}
PRODUCTS = {"TP2 x MR-SP2": TP2 | CP2, "TP2 x DP2": TP2, "MR-SP2 x DP2": CP2}


@pytest.mark.parametrize("name", full_only(HERE, list(PRODUCTS), first=["TP2 x MR-SP2"]))
def test_loss_and_gradients(name: str) -> None:
    check("step", tiny_sd3.ODD, **PRODUCTS[name])
