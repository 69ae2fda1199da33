"""Configurations as the tests of their fields use them."""

from __future__ import annotations

from tests.unit.fixtures.configs import make_config, no_torchrun

__all__ = ["make_config", "no_torchrun"]
