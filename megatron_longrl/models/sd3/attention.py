"""Attention among the tokens of a picture, and of its text where both streams take part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longrl.models.flow.linear import column_parallel, row_parallel, target
from megatron_longrl.models.flow.token_shards import TokenShards
from megatron_longrl.models.lora import LoraOptions
from megatron_longrl.platforms import platform

NORM_EPSILON = 1e-6


class Attention(MegatronModule):
    """Heads are divided among tensor-parallel ranks, in both streams alike.

    Args:
        with_text: the text's tokens are keys, too.
        text_goes_on: and queries.
        lora: the options of the adapters.
    """

    def __init__(
        self,
        config: TransformerConfig,
        tp: ProcessGroup,
        *,
        with_text: bool,
        text_goes_on: bool,
        lora: LoraOptions | None = None,
    ) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.text_goes_on = text_goes_on
        self.linear_qkv = column_parallel(
            config, tp, width, 3 * width, lora=target(lora, "linear_qkv")
        )
        self.linear_proj = row_parallel(config, tp, width, width, target(lora, "linear_proj"))
        # finalize_model_grads knows norms of queries and keys, which see a part of the heads, by
        # these names.
        self.q_layernorm, self.k_layernorm = self._norm(), self._norm()
        if with_text:
            self.added_linear_qkv = column_parallel(
                config, tp, width, 3 * width, lora=target(lora, "added_linear_qkv")
            )
            self.added_q_layernorm, self.added_k_layernorm = self._norm(), self._norm()
        if text_goes_on:
            self.added_linear_proj = row_parallel(
                config, tp, width, width, target(lora, "added_linear_proj")
            )

    def _norm(self) -> nn.Module:
        if not self.config.qk_layernorm:
            return nn.Identity()
        return nn.RMSNorm(
            self.config.kv_channels,
            eps=NORM_EPSILON,
            dtype=self.config.params_dtype,
            device=platform.device,
        )

    def forward(
        self, picture: Tensor, text: Tensor | None, shards: TokenShards
    ) -> tuple[Tensor, Tensor | None]:
        """Both streams after the attention.

        Args:
            picture: [s, b, h], this rank's tokens.
            text: [t, b, h], the whole text.
        """
        query, key, value = self._heads(self.linear_qkv(picture)[0])
        queries = [self.q_layernorm(query)]
        keys, values = shards.gather(torch.stack([self.k_layernorm(key), value], 1)).unbind(1)
        if text is not None:
            query, key, value = self._heads(self.added_linear_qkv(text)[0])
            keys = torch.cat([keys, self.added_k_layernorm(key)])
            values = torch.cat([values, value])
            if self.text_goes_on:
                queries.append(self.added_q_layernorm(query))
        every = [heads.permute(1, 2, 0, 3) for heads in (torch.cat(queries), keys, values)]
        attended = F.scaled_dot_product_attention(every[0], every[1], every[2])
        # [b, heads, s + t, d] -> [s + t, b, heads * d]
        output = attended.permute(2, 0, 1, 3).flatten(2)
        of_text = None
        if self.text_goes_on:
            of_text = self.added_linear_proj(output[len(picture) :].contiguous())[0]
        return self.linear_proj(output[: len(picture)].contiguous())[0], of_text

    def _heads(self, fused: Tensor) -> tuple[Tensor, ...]:
        """[s, b, heads * 3 * d] -> three of [s, b, heads, d]."""
        return fused.unflatten(2, (-1, 3, self.config.kv_channels)).unbind(3)
