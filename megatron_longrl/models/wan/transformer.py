"""The whole transformer: latents, times and text to velocities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from megatron_longrl.models.flow.token_shards import TokenShards
from megatron_longrl.models.flow.transformer import FlowTransformer, Layers
from megatron_longrl.models.lora import lora_options
from megatron_longrl.models.wan.block import ModulatedNorm, WanBlock, scale_shift_table
from megatron_longrl.models.wan.config import WanSection
from megatron_longrl.models.wan.embeddings import (
    ConditionEmbedder,
    Rotary,
    patchify,
    unpatchify,
)
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups


class WanTransformer(FlowTransformer):
    """This rank's part of the transformer of Wan.

    Heads and feed-forward layers are divided among tensor-parallel ranks, and the tokens of a film
    among MR-SP ranks.
    """

    def __init__(self, config: ModelConfig, groups: ParallelGroups) -> None:
        model, family = config.model, config.family_as(WanSection)
        options = {
            "ffn_hidden_size": model.ffn_hidden_size,
            "layernorm_epsilon": model.norm_epsilon,
        }
        super().__init__(config, groups, **options)
        width, dtype = model.hidden_size, self.config.params_dtype
        with torch.device(platform.device):
            self.patch_embedding = nn.Linear(self.patch_width, width, dtype=dtype)
            self.condition_embedder = ConditionEmbedder(self.config, groups.tp, family)
            self.proj_out = nn.Linear(width, self.patch_width, dtype=dtype)
        lora = lora_options(config.lora, "language_model")

        def build(layer: int) -> WanBlock:
            norm = family.cross_attn_norm
            return WanBlock(self.config, groups.tp, cross_attn_norm=norm, lora=lora)

        self.blocks = Layers(self.config, build)
        self.norm_out = ModulatedNorm(self.config)
        self.scale_shift_table = scale_shift_table(self.config, 2)

    def forward(self, latents: Tensor, times: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """Return velocities [b, c, f, h, w], whole on every rank.

        Args:
            latents: [b, c, f, h, w], on every rank.
            times: [b], from 0 to 1000.
            text: [b, t, d], of every token of the prompts.
            pooled: [b, 0]: Wan reads no embedding of a whole prompt.
        """
        frames, height, width = latents.shape[-3:]
        grid = (frames, height // self.patch_size, width // self.patch_size)
        shards = TokenShards(grid[0] * grid[1] * grid[2], self.cp)
        rotary = Rotary(self.config.kv_channels, grid, shards.mine, latents.device)
        of_time, modulations, words = self.condition_embedder(times, text)
        patches = patchify(latents.to(self.config.params_dtype), self.patch_size)
        film = self.patch_embedding(patches[shards.mine])
        for block in self.blocks.children():
            film = self.run_layer(block, film, words, modulations, shards, rotary)
        shift, scale = (self.scale_shift_table + of_time[:, None]).unbind(1)
        tokens = self.proj_out(self.norm_out(film, shift, scale))
        return unpatchify(shards.gather(tokens), self.patch_size, grid)
