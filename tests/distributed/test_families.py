"""Every model family trains in every layout as transformers' own model does on one process."""

from typing import Any

import pytest

from tests.distributed.cases import CP2, PP2, SP, TP2
from tests.distributed.families import check_family
from tests.runner.tiers import full_only

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2 with sequence parallelism": TP2 | SP,
    "MR-SP2": CP2,
    "MR-SP2 a2a": CP2 | {"cp_comm_type": "a2a"},
    "MR-SP2 p2p": CP2 | {"cp_comm_type": "p2p"},
    "PP2": PP2,
    "DP2": {},
}
TEXT = ("qwen2", "qwen3", "llama")
VISION = ("qwen2_5_vl", "qwen3_vl", "qwen2_5_omni")


FIRST = {
    "qwen2": ("TP2 with sequence parallelism", "PP2"),
    "qwen3": ("TP2 with sequence parallelism", "MR-SP2", "DP2"),
    "llama": ("MR-SP2 p2p",),
    "qwen2_5_vl": ("TP2 with sequence parallelism", "MR-SP2 p2p", "PP2"),
    "qwen3_vl": ("TP2 with sequence parallelism", "MR-SP2", "PP2", "DP2"),
    "qwen2_5_omni": ("TP2 with sequence parallelism", "MR-SP2", "DP2"),
}
"""Layouts of the first tier: every family in some, and every layout with both kinds."""


@pytest.mark.parametrize(
    ("family", "layout"),
    full_only(
        "tests/distributed/test_families.py::test_loss_and_gradients",
        [
            pytest.param(family, layout, id=f"{family}-{layout}")
            for family in (*TEXT, *VISION)
            for layout in LAYOUTS
        ],
        [f"{family}-{layout}" for family, layouts in FIRST.items() for layout in layouts],
    ),
)
def test_loss_and_gradients(family, layout, family_folder):
    check_family(family_folder(family), **LAYOUTS[layout])
