"""Attention among the tokens of a film, and from them to the text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longrl.models.flow.linear import column_parallel, row_parallel, target
from megatron_longrl.models.flow.token_shards import TokenShards
from megatron_longrl.models.lora import LoraOptions
from megatron_longrl.models.wan.embeddings import Rotary
from megatron_longrl.platforms import platform


class RMSNormAcrossHeads(MegatronModule):
    """RMSNorm over all heads together, of which a tensor-parallel rank has a part: ranks add up
    their sums of squares, one number for each token."""

    def __init__(self, config: TransformerConfig, tp: ProcessGroup) -> None:
        super().__init__(config)
        self.tp_group = tp
        weight = torch.ones(
            config.hidden_size // tp.size(), dtype=config.params_dtype, device=platform.device
        )
        self.weight = nn.Parameter(weight)
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, values: Tensor) -> Tensor:
        """[s, b, channels of this rank's heads] -> the same; computed in float32."""
        raised = values.float()
        squares = raised.square().sum(-1, keepdim=True)
        # Every rank's output depends on the sum, so that its gradient is a sum, too.
        whole = copy_to_tensor_model_parallel_region(
            reduce_from_tensor_model_parallel_region(squares, group=self.tp_group),
            group=self.tp_group,
        )
        mean = whole / self.config.hidden_size
        normed = raised * torch.rsqrt(mean + self.config.layernorm_epsilon)
        return (normed * self.weight).type_as(values)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> Any:
        """The weight's place in a checkpoint."""
        assert metadata is not None, "checkpoints are written with core's metadata"
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class SelfAttention(MegatronModule):
    """The tokens of a film ask each other. Heads are divided among tensor-parallel ranks.

    Args:
        lora: the options of the adapters.
    """

    def __init__(
        self, config: TransformerConfig, tp: ProcessGroup, lora: LoraOptions | None = None
    ) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.linear_qkv = column_parallel(
            config, tp, width, 3 * width, lora=target(lora, "linear_qkv")
        )
        self.linear_proj = row_parallel(config, tp, width, width, target(lora, "linear_proj"))
        self.norm_q, self.norm_k = RMSNormAcrossHeads(config, tp), RMSNormAcrossHeads(config, tp)

    def forward(self, film: Tensor, shards: TokenShards, rotary: Rotary) -> Tensor:
        """[s, b, h], this rank's tokens -> the same."""
        # [s, b, heads * 3 * d] -> three of [s, b, heads, d]
        fused = self.linear_qkv(film)[0].unflatten(2, (-1, 3, self.config.kv_channels))
        query, key, value = fused.unbind(3)
        query = rotary(self.norm_q(query.flatten(2)).view_as(query))
        key = rotary(self.norm_k(key.flatten(2)).view_as(key))
        keys, values = shards.gather(torch.stack([key, value], 1)).unbind(1)
        return self.linear_proj(_attended(query, keys, values))[0]


class CrossAttention(MegatronModule):
    """The tokens of a film ask those of the text, which every rank has all of.

    Args:
        lora: the options of the adapters.
    """

    def __init__(
        self, config: TransformerConfig, tp: ProcessGroup, lora: LoraOptions | None = None
    ) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.linear_q = column_parallel(config, tp, width, width, lora=target(lora, "linear_q"))
        self.linear_k = column_parallel(config, tp, width, width, lora=target(lora, "linear_k"))
        self.linear_v = column_parallel(config, tp, width, width, lora=target(lora, "linear_v"))
        self.linear_proj = row_parallel(config, tp, width, width, target(lora, "linear_proj"))
        self.norm_q, self.norm_k = RMSNormAcrossHeads(config, tp), RMSNormAcrossHeads(config, tp)

    def forward(self, film: Tensor, text: Tensor) -> Tensor:
        """[s, b, h] and [t, b, h] -> [s, b, h]."""
        query = self.norm_q(self.linear_q(film)[0])
        key = self.norm_k(self.linear_k(text)[0])
        heads = (-1, self.config.kv_channels)
        every = [part.unflatten(2, heads) for part in (query, key, self.linear_v(text)[0])]
        return self.linear_proj(_attended(*every))[0]


def _attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[s, b, heads, d] and two of [t, b, heads, d] -> [s, b, heads * d]."""
    every = [heads.permute(1, 2, 0, 3) for heads in (queries, keys, values)]
    attended = F.scaled_dot_product_attention(every[0], every[1], every[2])
    return attended.permute(2, 0, 1, 3).flatten(2).contiguous()
