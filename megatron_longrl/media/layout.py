"""What a model family makes of videos and images: sampling, size, place in a prompt, positions.

One layout serves trainer, rollout engine and evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec


@dataclass(frozen=True)
class Slots:
    """Places for consecutive embeddings of a video or image."""

    token_id: int
    """Stands in them; its own embedding is never used."""
    grid: tuple[int, int, int]
    """Tokens along time, height and width; row by row, frame by frame."""
    seconds_per_unit: float = 0.0
    """Time between two steps along the first axis; 0 for images, and where text tells the time."""
    seconds: tuple[float, ...] = ()
    """Time of each step, counted from the first, where they are not evenly spaced."""

    def __len__(self) -> int:
        time, height, width = self.grid
        return time * height * width


Piece = str | Slots
"""Of a prompt: text, or places for embeddings."""


class MediaLayout(Protocol):
    """How one family reads media."""

    placeholders: ClassVar[Mapping[str, str]]
    """What the family's chat templates write for an "image" and a "video", as regular expressions;
    none where they know no media. :meth:`pieces` come to stand there."""
    turns_images: ClassVar[bool]
    """Whether its own reader turns images as their EXIF orientation says."""

    def frame_indices(
        self, info: VideoInfo, max_frames: int | None, fps: float | None, images: int = 1
    ) -> tuple[int, ...]:
        """Frames to take of a video, or the tiles of an image; a multiple of those of a unit.

        Args:
            max_frames: ``--video-frames``.
            fps: ``--video-fps``.
            images: how many the prompt has.
        """

    def view(self, info: VideoInfo, frames: int, images: int = 1) -> PreprocessSpec:
        """How its frames are preprocessed.

        Args:
            frames: how many are taken; a last one that is there twice, to fill its unit, counts
                once.
            images: how many the prompt has.
        """

    def pieces(self, info: VideoInfo, indices: Sequence[int], view: PreprocessSpec) -> list[Piece]:
        """What stands for a video in a prompt."""

    def positions(self, pieces: Sequence[int | Slots]) -> Tensor:
        """Rotary positions of a whole prompt.

        Args:
            pieces: numbers of text tokens, and slots, in order.

        Returns:
            long [P], or [P, 3] for time, height and width. Text behind the prompt goes on from its
            last position.
        """


def text_positions(pieces: Sequence[int | Slots]) -> Tensor:
    """One after the other, whatever stands there; long [P]."""
    return torch.arange(sum(p if isinstance(p, int) else len(p) for p in pieces))
