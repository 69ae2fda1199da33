"""The properties of a video or image that are known before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST_PIXELS = 178_956_970
"""Largest number of pixels of a frame or image, at which Pillow also refuses images."""


@dataclass(frozen=True)
class VideoInfo:
    """The properties that a file's packets and first frame show."""

    num_frames: int
    """Frames that are shown."""
    fps: float
    """Frames divided by seconds; 0 where the file has no notion of time."""
    width: int
    """Width of the upright picture, in pixels."""
    height: int
    codec: str
    """FFmpeg's name: vp9, h264, …"""
    duration_seconds: float
    """Duration from the first frame's time to the end of the last frame."""
    is_image: bool = False
    """A picture, which has one frame and no time."""
    times: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Milliseconds from the first frame to each, uint32 [frames], for a video of variable rate."""
