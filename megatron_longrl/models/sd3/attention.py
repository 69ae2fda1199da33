"""Attention among the tokens of a picture, and of its text where both streams take part."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longrl.models.lora import (
    LoraColumnParallelLinear,
    LoraOptions,
    LoraRowParallelLinear,
)
from megatron_longrl.models.sd3.tokens import TokenShards
from megatron_longrl.platforms import platform

NORM_EPSILON = 1e-6


def _drawn_later(weight: Tensor) -> None:
    """Weights are drawn by their names, or read; until then nobody touches their memory."""


def column_parallel(
    config: TransformerConfig,
    tp: ProcessGroup,
    inner: int,
    outer: int,
    *,
    gather: bool = False,
    lora: LoraOptions | None = None,
) -> ColumnParallelLinear:
    """A linear layer whose outputs are divided among tensor-parallel ranks.

    Args:
        gather: every rank gets all outputs.
        lora: of its adapter, where it has one.
    """
    options: dict[str, Any] = {
        "config": config,
        "init_method": _drawn_later,
        "bias": True,
        "gather_output": gather,
        "skip_bias_add": False,
        "tp_group": tp,
    }
    if lora is None:
        return ColumnParallelLinear(inner, outer, **options)
    return LoraColumnParallelLinear(inner, outer, lora=lora, **options)


def row_parallel(
    config: TransformerConfig,
    tp: ProcessGroup,
    inner: int,
    outer: int,
    lora: LoraOptions | None = None,
) -> RowParallelLinear:
    """A linear layer whose inputs are divided among tensor-parallel ranks.

    Args:
        lora: see :func:`column_parallel`.
    """
    options: dict[str, Any] = {
        "config": config,
        "init_method": _drawn_later,
        "bias": True,
        "input_is_parallel": True,
        "skip_bias_add": False,
        "tp_group": tp,
    }
    if lora is None:
        return RowParallelLinear(inner, outer, **options)
    return LoraRowParallelLinear(inner, outer, lora=lora, **options)


def target(lora: LoraOptions | None, name: str) -> LoraOptions | None:
    """The options of the adapter of a layer; None where it has none."""
    return lora if lora is not None and name in lora.targets else None


class Attention(MegatronModule):
    """Heads are divided among tensor-parallel ranks, in both streams alike.

    Args:
        with_text: the text's tokens are keys, too.
        text_goes_on: and queries.
        lora: of its adapters.
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
