"""What is known of a video or image before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST_PIXELS = 178_956_970
"""Of a frame or image; larger ones are refused, at the size at which Pillow refuses images."""


@dataclass(frozen=True)
class VideoInfo:
    """What a look at a file's packets and first frame tells."""

    num_frames: int
    """Frames that are shown."""
    fps: float
    """Frames divided by seconds; 0 where the file has no notion of time."""
    width: int
    """Of the upright picture, in pixels."""
    height: int
    codec: str
    """FFmpeg's name: vp9, h264, …"""
    duration_seconds: float
    """From the first frame's time to the end of the last frame."""
    is_image: bool = False
    """A picture, which has one frame and no time."""
    times: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Of a video of variable rate: uint32 [frames], milliseconds from the first frame to each.
    None where frame k is shown k / fps seconds after the first."""
