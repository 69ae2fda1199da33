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
from megatron_longrl.models.sd3.block import JointBlock, Modulation, modulated, normalized
from megatron_longrl.models.sd3.config import SD3Section
from megatron_longrl.models.sd3.embeddings import PatchEmbedding, TimeTextEmbedding, unpatchify
from megatron_longrl.models.sd3.tokens import TokenShards
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups


class Layers(MegatronModule):
    """The layers by their numbers, each of which core asks for the weights that are divided; it
    asks no list."""


class MMDiT(MegatronModule):
    """This rank's part of the transformer of Stable Diffusion 3.

    Heads, feed-forward layers and modulations are divided among tensor-parallel ranks, and the
    tokens of a picture among MR-SP ranks.
    """

    def __init__(self, config: ModelConfig, groups: ParallelGroups) -> None:
        model, family = config.model, config.family_as(SD3Section)
        options = TransformerConfig(
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            ffn_hidden_size=4 * model.hidden_size,
            num_attention_heads=model.num_attention_heads,
            kv_channels=model.kv_channels,
            qk_layernorm=model.qk_layernorm,
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
            self.proj_out = nn.Linear(width, patch, dtype=dtype)
        self.transformer_blocks = Layers(options)
        lora = lora_options(config.lora, "language_model")
        for layer in range(model.num_layers):
            block = JointBlock(
                options,
                groups.tp,
                is_last=layer == model.num_layers - 1,
                dual=layer in family.dual_attention_layers,
                lora=lora,
            )
            self.transformer_blocks.add_module(str(layer), block)
        self.norm_out = Modulation(options, groups.tp, 2)

    def forward(self, latents: Tensor, times: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """Velocities [b, c, h, w], whole on every rank.

        Every rank of a replica computes the loss of the whole picture: MR-SP ranks then have
        gradients that are, summed, those of one rank times the number of ranks, as the count that
        divides them is.

        Args:
            latents: [b, c, h, w], on every rank.
            times: [b], from 0 to 1000.
            text: [b, t, d], of every token of the prompts.
            pooled: [b, e], of whole prompts.
        """
        height, width = latents.shape[-2:]
        count = (height // self.patch_size) * (width // self.patch_size)
        shards = TokenShards(count, self._cp)
        dtype = self.config.params_dtype
        condition = self.time_text_embed(times, pooled.to(dtype))
        words = self.context_embedder(text.to(dtype)).transpose(0, 1)
        picture = self.pos_embed(latents.to(dtype), shards.mine)
        for block in self.transformer_blocks.children():
            if self._recomputes and torch.is_grad_enabled():
                picture, words = checkpoint(
                    block, picture, words, condition, shards, use_reentrant=False
                )
            else:
                picture, words = block(picture, words, condition, shards)
        scale, shift = self.norm_out(condition)
        tokens = self.proj_out(modulated(normalized(picture), shift, scale))
        return unpatchify(shards.gather(tokens), self.patch_size, height, width)

    def set_input_tensor(self, tensor: object) -> None:
        """There is one pipeline stage, which gets nothing."""
