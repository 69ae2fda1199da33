"""Placement of videos and images in a prompt: the common parts of the families' layouts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.layout import PlacementContext, PromptPart
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.image.reader import probe_image
from megatron_longrl.media.modalities.image.spec import ImageSpec
from megatron_longrl.media.modalities.video.probe import probe
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.media.modalities.visual.spec import VisualSpec
from megatron_longrl.media.modality import MediaFile


@dataclass(frozen=True)
class VisualPlacement:
    """A :class:`~megatron_longrl.media.layout.Placement` of a video or an image."""

    path: Path
    info: VideoInfo
    indices: tuple[int, ...]
    """Numbers of the frames, or tiles, that are taken."""
    preprocess: PreprocessSpec
    is_upright: bool
    parts: list[PromptPart]

    @property
    def num_frames(self) -> int:
        """Number of frames; one that is repeated to fill its unit counts twice."""
        return len(self.indices)

    def specs(self) -> tuple[VisualSpec]:
        """The one video or image."""
        info = self.info
        pixels, content = info.width * info.height, content_hash(self.path)
        what = (str(self.path), content, self.indices, self.preprocess, pixels)
        if info.is_image:
            return (ImageSpec(*what, upright=self.is_upright),)
        rate = len(set(self.indices)) / info.num_frames * info.fps
        return (VideoSpec(*what, frames_per_second=rate),)


class VisualLayout(ABC):
    """A :class:`~megatron_longrl.media.layout.MediaLayout` of videos and images, but for positions
    and the symbols of chat templates."""

    turns_images: ClassVar[bool]
    """Whether the family's own reader turns images as their EXIF orientation says."""

    @abstractmethod
    def frame_indices(
        self, info: VideoInfo, max_frames: int | None, fps: float | None, images: int = 1
    ) -> tuple[int, ...]:
        """Frames to take of a video, or the tiles of an image; a multiple of those of a unit.

        Args:
            max_frames: ``--video-frames``.
            fps: ``--video-fps``.
            images: the number of images of the prompt.
        """

    @abstractmethod
    def preprocess_spec(self, info: VideoInfo, frames: int, images: int = 1) -> PreprocessSpec:
        """Return the preprocessing of a medium's frames.

        Args:
            frames: the number of frames that are taken; a last one that stands there twice, to fill
                its unit, counts once.
            images: the number of images of the prompt.

        Raises:
            ValueError: it has a shape that the family does not take.
        """

    @abstractmethod
    def parts(
        self, info: VideoInfo, indices: Sequence[int], preprocess: PreprocessSpec
    ) -> list[PromptPart]:
        """Return the parts of the prompt that stand for a video or an image."""

    def placement(self, medium: MediaFile, context: PlacementContext) -> VisualPlacement:
        """See :class:`~megatron_longrl.media.layout.MediaLayout`."""
        path, images = medium.path, context.counts.get("image", 0)
        if medium.modality not in ("video", "image"):
            raise MediaError(path, f"the model does not read a medium of kind {medium.modality}")
        is_image = medium.modality == "image"
        info = probe_image(path, upright=self.turns_images) if is_image else probe(path)
        indices = self.frame_indices(info, context.max_frames, context.fps, images)
        try:
            preprocess = self.preprocess_spec(info, len(set(indices)), images)
        except ValueError as error:
            raise MediaError(path, str(error)) from None
        is_upright = self.turns_images or not is_image
        parts = self.parts(info, indices, preprocess)
        return VisualPlacement(path, info, indices, preprocess, is_upright, parts)
