"""The whole transformer: latents, times and text to velocities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from megatron_longrl.models.flow.token_shards import TokenShards
from megatron_longrl.models.flow.transformer import FlowTransformer, Layers
from megatron_longrl.models.lora import lora_options
from megatron_longrl.models.sd3.block import JointBlock, Modulation, modulated, normalized
from megatron_longrl.models.sd3.config import SD3Section
from megatron_longrl.models.sd3.embeddings import PatchEmbedding, TimeTextEmbedding, unpatchify
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups


class MMDiT(FlowTransformer):
    """This rank's part of the transformer of Stable Diffusion 3.

    Heads, feed-forward layers and modulations are divided among tensor-parallel ranks, and the
    tokens of a picture among MR-SP ranks.
    """

    def __init__(self, config: ModelConfig, groups: ParallelGroups) -> None:
        model, family = config.model, config.family_as(SD3Section)
        options = {"ffn_hidden_size": 4 * model.hidden_size, "qk_layernorm": model.qk_layernorm}
        super().__init__(config, groups, **options)
        width, dtype = model.hidden_size, self.config.params_dtype
        with torch.device(platform.device):
            self.pos_embed = PatchEmbedding(
                family.latent_channels,
                self.patch_size,
                width,
                family.pos_embed_max_size,
                family.latent_sample_size // self.patch_size,
                dtype,
            )
            self.time_text_embed = TimeTextEmbedding(family.pooled_projection_dim, width, dtype)
            self.context_embedder = nn.Linear(family.joint_attention_dim, width, dtype=dtype)
            self.proj_out = nn.Linear(width, self.patch_width, dtype=dtype)
        lora = lora_options(config.lora, "language_model")

        def build(layer: int) -> JointBlock:
            return JointBlock(
                self.config,
                groups.tp,
                is_last=layer == model.num_layers - 1,
                dual=layer in family.dual_attention_layers,
                lora=lora,
            )

        self.transformer_blocks = Layers(self.config, build)
        self.norm_out = Modulation(self.config, groups.tp, 2)

    def forward(self, latents: Tensor, times: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """Return velocities [b, c, h, w], whole on every rank.

        Args:
            latents: [b, c, h, w], on every rank.
            times: [b], from 0 to 1000.
            text: [b, t, d], of every token of the prompts.
            pooled: [b, e], of whole prompts.
        """
        height, width = latents.shape[-2:]
        count = (height // self.patch_size) * (width // self.patch_size)
        shards = TokenShards(count, self.cp)
        dtype = self.config.params_dtype
        condition = self.time_text_embed(times, pooled.to(dtype))
        words = self.context_embedder(text.to(dtype)).transpose(0, 1)
        picture = self.pos_embed(latents.to(dtype), shards.mine)
        for block in self.transformer_blocks.children():
            picture, words = self.run_layer(block, picture, words, condition, shards)
        scale, shift = self.norm_out(condition)
        tokens = self.proj_out(modulated(normalized(picture), shift, scale))
        return unpatchify(shards.gather(tokens), self.patch_size, height, width)
