"""What is known of a video or image before it is decoded; the error of one that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class VideoError(Exception):
    """A video that cannot be read; one line that names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = str(path)
        self.reason = " ".join(reason.split())
        super().__init__(f"{self.path}: {self.reason}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return VideoError, (self.path, self.reason)


@dataclass(frozen=True)
class VideoInfo:
    """What a look at a file's packets tells."""

    num_frames: int
    """Frames that are shown."""
    fps: float
    """Mean rate; 0 where the file has no notion of time."""
    width: int
    height: int
    codec: str
    """FFmpeg's name: vp9, h264, …"""
    duration_seconds: float
    is_image: bool = False
    """A picture, which has one frame and no time."""
