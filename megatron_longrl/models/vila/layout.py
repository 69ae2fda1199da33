"""The layout of videos and images in VILA's prompts: squeezed square frames, each followed by a
newline.

The only image of a prompt may become tiles. Frames of a video that are averaged into one are a
unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from megatron_longrl.media.layout import (
    CountedPart,
    PlaceholderSpan,
    PromptPart,
    text_positions,
)
from megatron_longrl.media.modalities.video.spec import sample_frame_indices
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.media.modalities.visual.layout import VisualLayout
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec, Tiling
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.tiles import nearest_tiling

if TYPE_CHECKING:
    from megatron_longrl.config.family import FamilySection
    from megatron_longrl.data.tokenizer import Tokenizer


class VilaLayout(VisualLayout):
    """A :class:`~megatron_longrl.media.layout.MediaLayout`."""

    placeholders: ClassVar[Mapping[str, str]] = {}
    turns_images: ClassVar[bool] = False
    """llava/utils/media.py of VILA opens images with Pillow and leaves EXIF alone."""

    def __init__(self, family: FamilySection, tokenizer: Tokenizer) -> None:
        self._family = VilaSection.of(family)
        self._media_id = tokenizer.media_id
        self._times = self._family.vision_temporal_pooling

    def frame_indices(
        self, info: VideoInfo, max_frames: int | None, fps: float | None, images: int = 1
    ) -> tuple[int, ...]:
        """Uniform over the whole video, as LongVILA samples, whole units; or an image's tiles."""
        if info.is_image:
            tiles = sum(rows * columns for rows, columns in self._tilings(info, images))
            return tuple(range(max(tiles, 1)))
        found = sample_frame_indices(info, max_frames, fps)
        if len(found) < self._times:
            return found + found[-1:] * (self._times - len(found))
        surplus = len(found) % self._times
        return sample_frame_indices(info, len(found) - surplus, None) if surplus else found

    def preprocess_spec(self, info: VideoInfo, frames: int, images: int = 1) -> PreprocessSpec:
        """The same for all videos, and for all images without tiles."""
        family, side = self._family, self._family.frame_side
        square = (side, side, family.image_mean, family.image_std)
        if not info.is_image:
            pooling = (self._times, *family.vision_spatial_pooling)
            return PreprocessSpec(*square, self._times, family.tokens_per_frame, pooling)
        tilings, tokens = self._tilings(info, images), family.token_side**2
        if not tilings or family.image_aspect_ratio == "dynamic":
            return PreprocessSpec(*square, 1, tokens, tilings=tilings)
        tokens *= prod(tilings[family.vision_s2_output_scale])
        return PreprocessSpec(*square, frames, tokens, tilings=tilings)

    def parts(
        self, info: VideoInfo, indices: Sequence[int], preprocess: PreprocessSpec
    ) -> list[PromptPart]:
        """Unit after unit. A tile that is a separate picture is on a separate line."""
        span = PlaceholderSpan(self._media_id, (1, 1, preprocess.tokens_per_unit))
        is_line = bool(preprocess.tilings) and not preprocess.joins_tiles
        unit: list[PromptPart] = [span, "\n", "\n"] if is_line else [span, "\n"]
        return unit * (len(indices) // preprocess.frames_per_unit)

    def positions(self, parts: Sequence[CountedPart]) -> Tensor:
        """Return the positions of text."""
        return text_positions(parts)

    def _tilings(self, info: VideoInfo, images: int) -> tuple[Tiling, ...]:
        """Return the grids of tiles as llava/mm_utils.py and llava/model/llava_arch.py of VILA
        compute them."""
        family = self._family
        if images > 1 or family.image_aspect_ratio == "resize":
            return ()
        size, most, side = (info.width, info.height), family.image_max_tiles, family.frame_side
        if family.image_aspect_ratio == "dynamic":
            grid = nearest_tiling(*size, family.image_min_tiles, most, side)
            return (grid,) if grid == (1, 1) else (grid, (1, 1))
        *squares, largest = family.tile_squares
        grid = nearest_tiling(*size, largest**2, most, side)
        return (*((square, square) for square in squares), grid)
