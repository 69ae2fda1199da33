"""PPO's critic over two ranks: values, advantages, losses and gradients of the one-process twin."""

from __future__ import annotations

import pytest

from tests.distributed.critic import check_critic
from tests.distributed.test_policy_losses import FIRST, LAYOUTS
from tests.runner.tiers import full_only


@pytest.mark.parametrize(
    "layout", full_only("tests/distributed/test_critic.py::test_critic", LAYOUTS, FIRST)
)
def test_critic(tiny_data, layout):
    check_critic(tiny_data, **LAYOUTS[layout])
