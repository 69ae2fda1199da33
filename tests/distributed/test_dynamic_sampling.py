"""Dynamic sampling over two ranks: DAPO, https://arxiv.org/abs/2503.14476, section 3.2."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.cases import CP2
from tests.distributed.dynamic_sampling import nothing_to_train_on, refilled
from tests.runner.tiers import full_only

LAYOUTS: dict[str, dict[str, Any]] = {"DP2": {}, "MR-SP2": dict(CP2)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_without_a_live_group_makes_no_update(tiny_data, caplog, layout):
    nothing_to_train_on(tiny_data, caplog, **LAYOUTS[layout])


DEAD: dict[str, tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]] = {
    "both lose one twice": ((1, 3, 6, 7, 8), ((1, 6), (3, 7)), 3),
    "the first waits": ((0, 1, 4, 7, 8), ((0, 1), (4, 7)), 4),
    "the second waits": ((2, 3, 5, 6), ((5, 6), (2, 3)), 3),
}
"""What the replicas do, from one round to the next."""


@pytest.mark.parametrize(
    ("layout", "live", "by_replica", "rounds", "updates"),
    full_only(
        "tests/distributed/test_dynamic_sampling.py::test_dead_groups_are_replaced",
        [
            pytest.param(layout, *groups, updates, id=f"{layout}, {name}, {updates}")
            for layout in LAYOUTS
            for name, groups in DEAD.items()
            for updates in (1, 2)
        ],
        [
            "DP2, both lose one twice, 2",
            "DP2, the first waits, 1",
            "DP2, the second waits, 2",
            "MR-SP2, both lose one twice, 1",
            "MR-SP2, the first waits, 2",
        ],
    ),
)
def test_dead_groups_are_replaced(tiny_data, layout, live, by_replica, rounds, updates):
    trained = by_replica if layout == "DP2" else (sorted(sum(by_replica, ())),)
    consumed = max(max(part) for part in trained) + 1
    refilled(tiny_data, live, trained, rounds, consumed, updates=updates, **LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_number_of_tries_is_honoured(tiny_data, layout):
    """One group is left of four; in DP2 it is the first replica's, and the second has padding."""
    trained = ((1,), ()) if layout == "DP2" else ((1,),)
    for tries in (1, 2):
        consumed = 4 if tries == 1 else 7
        refilled(tiny_data, (1, 9), trained, tries, consumed, tries, **LAYOUTS[layout])
