"""A tiny model, and a folder of its weights."""

from __future__ import annotations

from tests.unit.fixtures.models import build, convert, groups, tiny, vila_folder

__all__ = ["build", "convert", "groups", "tiny", "vila_folder"]
