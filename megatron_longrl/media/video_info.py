"""What is known of a video or image before it is decoded; the error of one that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST_PIXELS = 178_956_970
"""Of a frame or image; larger ones are refused, at the size at which Pillow refuses images."""


class VideoError(Exception):
    """A video or image that cannot be read; one line that names the file and the reason.

    Control characters in the file's name and in the reason are escaped, so that neither can break
    a line of a log or write what looks like another one.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = str(path)
        self.reason = printable(" ".join(reason.split()))
        super().__init__(f"{printable(self.path)}: {self.reason}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return VideoError, (self.path, self.reason)

    @classmethod
    def of(cls, path: str | Path, error: Exception) -> VideoError:
        """Whatever a library has raised while it read a file, as an error of that file."""
        if isinstance(error, cls):
            return error
        if isinstance(error, MemoryError):
            return cls(path, "there is not enough memory to read it")
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return cls(path, f"cannot be read: {words.replace(str(path), 'the file')[:_LONGEST]}")


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


_LONGEST = 160
"""Characters of a library's message that are passed on."""


def printable(text: str) -> str:
    """Control characters and lone surrogates as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
