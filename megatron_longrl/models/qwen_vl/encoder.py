"""The vision encoder of the Qwen-VL families: tower and mergers, on every rank; the tower may be
shared by TP ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.models.qwen_vl.merger import QwenProjector
from megatron_longrl.models.qwen_vl.tower import QwenVisionTower, vision_transformer_config

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.encoder_groups import EncoderGroups


class QwenVisionEncoder(MegatronModule):
    """Temporal patches to embeddings of the language model."""

    def __init__(self, config: ModelConfig, groups: EncoderGroups) -> None:
        super().__init__(config=vision_transformer_config(config))
        self.vision_tower = QwenVisionTower(config, groups)
        self.projector = QwenProjector(config)

    def forward(self, pixels: Tensor, preprocess: PreprocessSpec | None = None) -> Tensor:
        """Encode temporal patches.

        Args:
            pixels: float [u, t, 3, H, W], normalised: t consecutive frames make a temporal patch.
            preprocess: says nothing that the pixels do not.

        Returns:
            [u, tokens, h], with DeepStack [u, tokens, h * (1 + taps)].
        """
        return self.projector(self.vision_tower(pixels))
