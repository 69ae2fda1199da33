"""Small real video files."""

from __future__ import annotations

from tests.unit.fixtures.videos import picture, write_video

__all__ = ["picture", "write_video"]
