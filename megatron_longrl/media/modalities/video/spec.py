"""Which frames of a video a run looks at, and how."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from megatron_longrl.media.modalities.video.times import sample
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec


@dataclass(frozen=True)
class VideoSpec:
    """Frames of a video or an image, and how they are preprocessed."""

    path: str
    content: str
    """Hash of the file's bytes."""
    frame_indices: tuple[int, ...]
    """In presentation order of the file, or numbers of an image's tiles; a multiple of
    ``view.frames_per_unit``."""
    view: PreprocessSpec
    source_pixels: int = field(default=0, compare=False)
    """Width times height of the file's frames: what decoding one costs."""
    is_image: bool = field(default=False, compare=False)
    """Pillow reads the file, not a video decoder."""
    frames_per_second: float = field(default=0.0, compare=False)
    """At which the frames were taken; 0 where the file has no notion of time."""
    upright: bool = True
    """Whether an image is turned as its EXIF orientation says. Videos always are upright."""

    def key(self) -> str:
        """Identifies these pixels: content, frames and preprocessing."""
        return self._key

    @cached_property
    def _key(self) -> str:
        text = f"{self.content}/{self.frame_indices}/{self.view.text}"
        if not self.upright:
            text += "/as stored"
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
    are spread uniformly from the first to the last frame, as LongVILA samples; over time, where the
    rate varies. Without either, or from a video that has fewer, all.
    """
    return tuple(sample(info, max_frames, fps, _uniform))


def _uniform(count: int, rate: float, max_frames: int | None, fps: float | None) -> list[int]:
    wanted = count
    if fps is not None and rate > 0:
        wanted = max(1, min(count, round(count / rate * fps)))
    if max_frames is not None:
        wanted = min(wanted, max_frames)
    spread: list[int] = np.linspace(0, count - 1, wanted).round().astype(np.int64).tolist()
    return spread
