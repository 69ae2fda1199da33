"""PPO's critic over two ranks: values, advantages, losses and gradients of the one-process twin."""

from __future__ import annotations

import pytest

from tests.distributed.critic import check_critic
from tests.distributed.test_policy_losses import LAYOUTS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_critic(tiny_data, layout):
    check_critic(tiny_data, **LAYOUTS[layout])
