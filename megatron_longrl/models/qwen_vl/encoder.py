"""The vision encoder of the Qwen-VL families: tower and mergers, on every rank; the tower may be
shared by TP ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.qwen_vl.merger import QwenProjector
from megatron_longrl.models.qwen_vl.tower import QwenVisionTower, vision_transformer_config

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.parallel.groups import ParallelGroups


class QwenVisionEncoder(MegatronModule):
    """Temporal patches to embeddings of the language model."""

    def __init__(self, config: Config, groups: ParallelGroups) -> None:
        family = config.family_as(QwenVLSection)
        super().__init__(config=vision_transformer_config(config))
        self.times = family.vision_temporal_patch_size
        self.vision_tower = QwenVisionTower(config, groups)
        self.projector = QwenProjector(config)

    def forward(self, pixels: Tensor, view: PreprocessSpec | None = None) -> Tensor:
        """Encode frames.

        Args:
            pixels: float [f, 3, H, W], normalised; consecutive frames make one temporal patch.
            view: says nothing that the pixels do not.

        Returns:
            [f / t, tokens, h], with DeepStack [f / t, tokens, h * (1 + taps)].
        """
        return self.projector(self.vision_tower(pixels.unflatten(0, (-1, self.times))))
