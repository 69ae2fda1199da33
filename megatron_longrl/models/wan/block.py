"""A layer of the transformer, modulated by the time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longrl.models.flow.layers import FeedForward
from megatron_longrl.models.flow.token_shards import TokenShards
from megatron_longrl.models.lora import LoraOptions
from megatron_longrl.models.wan.attention import CrossAttention, SelfAttention
from megatron_longrl.models.wan.embeddings import MODULATIONS, Rotary
from megatron_longrl.platforms import platform


def scale_shift_table(config: TransformerConfig, count: int) -> nn.Parameter:
    """[1, count, h]: the table that is added to the modulations of the time; float32, as diffusers
    keeps it."""
    return nn.Parameter(torch.empty(1, count, config.hidden_size, device=platform.device))


class ModulatedNorm(MegatronModule):
    """LayerNorm without weights, then a scale and a shift, in float32."""

    def forward(self, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """[s, b, h], by two of [b, h]."""
        normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=self.config.layernorm_epsilon)
        return (normed * (1 + scale) + shift).type_as(tokens)


class WanBlock(MegatronModule):
    """One layer. The stream is added to in float32.

    Args:
        cross_attn_norm: a LayerNorm with weights comes before the attention to the text.
        lora: the options of the adapters.
    """

    def __init__(
        self,
        config: TransformerConfig,
        tp: ProcessGroup,
        *,
        cross_attn_norm: bool,
        lora: LoraOptions | None = None,
    ) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.norm1, self.norm3 = ModulatedNorm(config), ModulatedNorm(config)
        self.attn1 = SelfAttention(config, tp, lora)
        self.attn2 = CrossAttention(config, tp, lora)
        self.norm2: nn.Module = nn.Identity()
        if cross_attn_norm:
            self.norm2 = nn.LayerNorm(
                width, eps=config.layernorm_epsilon, dtype=torch.float32, device=platform.device
            )
        self.ffn = FeedForward(config, tp, lora)
        self.scale_shift_table = scale_shift_table(config, MODULATIONS)

    def forward(
        self, film: Tensor, text: Tensor, modulations: Tensor, shards: TokenShards, rotary: Rotary
    ) -> Tensor:
        """The film's tokens after the layer.

        Args:
            film: [s, b, h], this rank's tokens.
            text: [t, b, h].
            modulations: [b, 6, h].
        """
        both = (self.scale_shift_table + modulations.float()).unbind(1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = both
        attended = self.attn1(self.norm1(film, shift, scale), shards, rotary)
        film = (film.float() + attended * gate).type_as(film)
        film = film + self.attn2(self.norm2(film.float()).type_as(film), text)
        inner = self.ffn(self.norm3(film, ffn_shift, ffn_scale))
        return (film.float() + inner.float() * ffn_gate).type_as(film)
