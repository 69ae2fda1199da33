"""The vision encoder: tower and projector, replicated on every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_longrl.models.vila.projector import VilaProjector
from megatron_longrl.models.vila.siglip import (
    SiglipVisionTower,
    vision_transformer_config,
)

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.parallel.groups import ParallelGroups


class VisionEncoder(MegatronModule):
    """Frames to language-model embeddings."""

    def __init__(self, config: Config, groups: ParallelGroups) -> None:
        super().__init__(config=vision_transformer_config(config))
        self.vision_tower = SiglipVisionTower(config, groups)
        self.projector = VilaProjector(config)
        self.pooling = config.vision_temporal_pooling

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames.

        Args:
            pixels: float [f, 3, S, S], normalised.

        Returns:
            [f / p, tokens per frame, hidden size of the language model], where p frames are pooled.
        """
        embeddings = self.projector(self.vision_tower(pixels))
        if self.pooling == 1:
            return embeddings
        return embeddings.unflatten(0, (-1, self.pooling)).mean(dim=1)
