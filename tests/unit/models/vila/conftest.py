"""Configurations as the tests of their fields use them."""

from __future__ import annotations

from tests.unit.config.conftest import (
    make_config as make_config,
)
from tests.unit.config.conftest import (
    no_torchrun as no_torchrun,
)
