"""Configurations as the tests of their fields use them."""

from __future__ import annotations

from tests.unit.fixtures.configs import load, make_config, no_torchrun, recipe

__all__ = ["load", "make_config", "no_torchrun", "recipe"]
