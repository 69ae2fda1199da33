"""The vision encoder: tower and projector, on every rank; the tower may be shared by TP ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.projector import VilaProjector
from megatron_longrl.models.vila.scales import projected_tiles, scaled_features
from megatron_longrl.models.vila.siglip import (
    SiglipVisionTower,
    vision_transformer_config,
)

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.encoder_groups import EncoderGroups


class VisionEncoder(MegatronModule):
    """Frames to language-model embeddings."""

    def __init__(self, config: ModelConfig, groups: EncoderGroups) -> None:
        family = config.family_as(VilaSection)
        super().__init__(config=vision_transformer_config(config))
        self.vision_tower = SiglipVisionTower(config, groups)
        self.projector = VilaProjector(family, config.training, config.model)
        self.sides = family.tile_squares
        self.output_scale = family.vision_s2_output_scale
        self.is_dynamic = family.vision_dynamic_s2

    def forward(self, pixels: Tensor, preprocess: PreprocessSpec | None = None) -> Tensor:
        """Encode frames.

        Args:
            pixels: float [units, frames of a unit, 3, S, S], normalised.
            preprocess: the preprocessing of the frames; None stands for whole frames that are not
                pooled.

        Returns:
            [units, tokens of a unit, hidden size of the language model].
        """
        frames = pixels.flatten(0, 1)
        if preprocess is not None and preprocess.joins_tiles:
            features = self.vision_tower(frames)
            return projected_tiles(self.projector, features, preprocess.tilings, self.output_scale)
        embeddings = self.projector(self._features(frames))
        return embeddings if preprocess is None else _pooled(embeddings, preprocess.pooling)

    def _features(self, pixels: Tensor) -> Tensor:
        """Return the features of whole frames: [f, patches, c * scales]."""
        if self.is_dynamic:
            # Of one scale, in the place of all.
            return self.vision_tower(pixels).repeat(1, 1, len(self.sides))
        if len(self.sides) > 1:
            return scaled_features(self.vision_tower, pixels, self.sides, self.output_scale)
        return self.vision_tower(pixels)


def _pooled(embeddings: Tensor, pooling: tuple[int, int, int]) -> Tensor:
    """Averages over frames, rows and columns of [f, side * side, h]."""
    if pooling == (1, 1, 1):
        return embeddings
    times, rows, columns = pooling
    side = round(embeddings.shape[1] ** 0.5)
    blocks = embeddings.unflatten(1, (side // rows, rows, side // columns, columns))
    return blocks.unflatten(0, (-1, times)).mean(dim=(1, 3, 5)).flatten(1, 2)
