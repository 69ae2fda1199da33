"""The whole transformer: latents, times and text to velocities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_longrl.models.language import common_transformer_options
from megatron_longrl.models.lora import lora_options
from megatron_longrl.models.sd3.mmdit import Layers
from megatron_longrl.models.sd3.tokens import TokenShards
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


class WanTransformer(MegatronModule):
    """This rank's part of the transformer of Wan.

    Heads and feed-forward layers are divided among tensor-parallel ranks, and the tokens of a film
    among MR-SP ranks.
    """

    def __init__(self, config: ModelConfig, groups: ParallelGroups) -> None:
        model, family = config.model, config.family_as(WanSection)
        options = TransformerConfig(
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            ffn_hidden_size=model.ffn_hidden_size,
            num_attention_heads=model.num_attention_heads,
            kv_channels=model.kv_channels,
            layernorm_epsilon=model.norm_epsilon,
            tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
            context_parallel_size=config.parallel.context_parallel_size,
            **common_transformer_options(config.training, model),
        )
        super().__init__(options)
        self.model_type = ModelType.encoder_or_decoder
        self._cp = groups.cp
        self._recomputes = config.training.recompute_granularity == "full"
        self.patch_size = family.latent_patch_size
        width, dtype = model.hidden_size, options.params_dtype
        patch = family.latent_channels * self.patch_size**2
        with torch.device(platform.device):
            self.patch_embedding = nn.Linear(patch, width, dtype=dtype)
            self.condition_embedder = ConditionEmbedder(options, groups.tp, family)
            self.proj_out = nn.Linear(width, patch, dtype=dtype)
        lora = lora_options(config.lora, "language_model")
        self.blocks = Layers(options)
        for layer in range(model.num_layers):
            block = WanBlock(options, groups.tp, cross_attn_norm=family.cross_attn_norm, lora=lora)
            self.blocks.add_module(str(layer), block)
        self.norm_out = ModulatedNorm(options)
        self.scale_shift_table = scale_shift_table(options, 2)

    def forward(self, latents: Tensor, times: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """Velocities [b, c, f, h, w], whole on every rank; their gradients are those of
        :class:`~megatron_longrl.models.sd3.mmdit.MMDiT`.

        Args:
            latents: [b, c, f, h, w], on every rank.
            times: [b], from 0 to 1000.
            text: [b, t, d], of every token of the prompts.
            pooled: [b, 0]: Wan reads no embedding of a whole prompt.
        """
        frames, height, width = latents.shape[-3:]
        grid = (frames, height // self.patch_size, width // self.patch_size)
        shards = TokenShards(grid[0] * grid[1] * grid[2], self._cp)
        rotary = Rotary(self.config.kv_channels, grid, shards.mine, latents.device)
        of_time, modulations, words = self.condition_embedder(times, text)
        patches = patchify(latents.to(self.config.params_dtype), self.patch_size)
        film = self.patch_embedding(patches[shards.mine])
        for block in self.blocks.children():
            given = (film, words, modulations, shards, rotary)
            if self._recomputes and torch.is_grad_enabled():
                film = checkpoint(block, *given, use_reentrant=False)
            else:
                film = block(*given)
        shift, scale = (self.scale_shift_table + of_time[:, None]).unbind(1)
        tokens = self.proj_out(self.norm_out(film, shift, scale))
        return unpatchify(shards.gather(tokens), self.patch_size, grid)

    def set_input_tensor(self, tensor: object) -> None:
        """There is one pipeline stage, which gets nothing."""
