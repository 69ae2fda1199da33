"""Small real video files."""

from __future__ import annotations

from tests.unit.fixtures.videos import by_dali, picture, write_video

__all__ = ["by_dali", "picture", "write_video"]
