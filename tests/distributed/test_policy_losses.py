"""Every policy loss, aggregation, KL term and correction, over two ranks: losses
and gradients of the one-process twin."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.cases import CP2, PP2, SP, TP2
from tests.distributed.policy_losses import check_policy_losses
from tests.runner.tiers import full_only

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": TP2 | {"use_sequence_packing": True},
    "TP2 with sequence parallelism": TP2 | SP | {"micro_batch_size": 2},
    "MR-SP2": CP2 | {"micro_batch_size": 2},
    "MR-SP2 packed": CP2 | {"use_sequence_packing": True},
    "MR-SP2, rows dealt out whole": CP2 | {"mrsp_mode": "encode"},
    "MR-SP2, no shared prompts": CP2 | {"shared_prompt": False, "cp_comm_type": "p2p"},
    "PP2": dict(PP2),
    "PP2 packed": PP2 | {"use_sequence_packing": True},
    "DP2": {"micro_batch_size": 2},
    "DP2 packed": {"use_sequence_packing": True},
}


FIRST = ("TP2 with sequence parallelism", "MR-SP2 packed", "PP2")
"""Layouts of the first tier: those that divide sequences or layers."""


@pytest.mark.parametrize(
    "layout",
    full_only("tests/distributed/test_policy_losses.py::test_policy_losses", LAYOUTS, FIRST),
)
def test_policy_losses(tiny_data, layout):
    check_policy_losses(tiny_data, **LAYOUTS[layout])
