"""Which frames of a video a run looks at, and how."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from megatron_longrl.data.frame_view import FrameView
from megatron_longrl.data.video_info import VideoInfo


@dataclass(frozen=True)
class VideoSpec:
    """Frames of a video or an image, and how they are preprocessed."""

    path: str
    content: str
    """Hash of the file's bytes."""
    frame_indices: tuple[int, ...]
    """In presentation order of the file, or numbers of an image's tiles; a multiple of
    ``view.frames_per_unit``."""
    view: FrameView
    source_pixels: int = field(default=0, compare=False)
    """Width times height of the file's frames: what decoding one costs."""
    is_image: bool = field(default=False, compare=False)
    """Pillow reads the file, not a video decoder."""
    frames_per_second: float = field(default=0.0, compare=False)
    """At which the frames were taken; 0 where the file has no notion of time."""

    def key(self) -> str:
        """Identifies these pixels: content, frames and preprocessing."""
        return self._key

    @cached_property
    def _key(self) -> str:
        text = f"{self.content}/{self.frame_indices}/{self.view}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def num_units(self) -> int:
        """Units of work of the tower."""
        return len(self.frame_indices) // self.view.frames_per_unit

    @property
    def num_tokens(self) -> int:
        """Embeddings."""
        return self.num_units * self.view.tokens_per_unit


def sample_frame_indices(
    info: VideoInfo, max_frames: int | None, fps: float | None
) -> tuple[int, ...]:
    """Which frames to take.

    With ``fps``, one frame per 1 / fps seconds, at most ``max_frames``; else ``max_frames``. They
    are spread uniformly from the first to the last frame, as LongVILA samples. Without either, or
    from a video that has fewer, all.
    """
    count = info.num_frames
    if fps is not None and info.fps > 0:
        count = max(1, min(count, round(info.num_frames / info.fps * fps)))
    if max_frames is not None:
        count = min(count, max_frames)
    return tuple(int(i) for i in np.linspace(0, info.num_frames - 1, count).round())
