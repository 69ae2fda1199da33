"""The SigLIP vision tower on megatron-core's transformer block.

Architecture: https://arxiv.org/abs/2303.15343, as in transformers' ``SiglipVisionModel``: patch
convolution, learned positions, pre-norm layers with biases and tanh-GELU, no class token. VILA
takes the features of a chosen hidden layer, so the layers after it, the last norm and the pooling
head never run and are not held here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longrl.models.language import block_spec, common_transformer_options
from megatron_longrl.models.lora import lora_options
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.encoder_groups import EncoderGroups


def vision_transformer_config(config: ModelConfig) -> TransformerConfig:
    """megatron-core's configuration of the tower."""
    family = config.family_as(VilaSection)
    tensor = (
        config.parallel.tensor_model_parallel_size if config.parallel.vision_tensor_parallel else 1
    )
    return TransformerConfig(
        num_layers=family.layers_to_run,
        hidden_size=family.vision_hidden_size,
        ffn_hidden_size=family.vision_ffn_hidden_size,
        num_attention_heads=family.vision_num_attention_heads,
        normalization="LayerNorm",
        layernorm_epsilon=family.vision_norm_epsilon,
        activation_func=partial(torch.nn.functional.gelu, approximate="tanh"),
        add_bias_linear=True,
        add_qkv_bias=True,
        tensor_model_parallel_size=tensor,
        **common_transformer_options(config.training, config.model),
    )


class SiglipVisionTower(MegatronModule):
    """Pixels [f, 3, S, S] -> patch features [f, patches, c] of the selected hidden layer."""

    def __init__(self, config: ModelConfig, groups: EncoderGroups) -> None:
        family = config.family_as(VilaSection)
        transformer_config = vision_transformer_config(config)
        super().__init__(config=transformer_config)
        self.grid = family.vision_image_size // family.vision_patch_size
        hidden, patch = family.vision_hidden_size, family.vision_patch_size
        dtype, device = config.training.params_dtype, platform.device
        self.patch_embedding = torch.nn.Conv2d(
            3, hidden, patch, stride=patch, dtype=dtype, device=device
        )
        self.position_embedding = torch.nn.Embedding(
            self.grid**2, hidden, dtype=dtype, device=device
        )
        self.decoder = TransformerBlock(
            config=transformer_config,
            spec=block_spec(
                transformer_config.num_layers,
                AttnMaskType.no_mask,
                lora=lora_options(config.lora, "vision_tower"),
            ),
            pre_process=True,
            post_process=False,
            pg_collection=groups.pg,
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames; see the class for shapes."""
        features = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))
        # [f, c, grid, grid] -> [f, patches, c]
        features = features.flatten(2).transpose(1, 2) + self.position_embedding.weight
        hidden = features.transpose(0, 1).contiguous()  # [patches, f, c]
        return self.decoder(hidden, attention_mask=None).transpose(0, 1)
