"""Layers of flow-matching transformers: embeddings of the time, and the feed-forward layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longrl.models.flow.linear import column_parallel, row_parallel, target
from megatron_longrl.models.lora import LoraOptions

LONGEST_PERIOD = 10000.0
"""Longest wave length, divided by 2 pi, of sinusoids that stand for times and positions."""


def time_sinusoids(times: Tensor, channels: int) -> Tensor:
    """[b] -> float32 [b, channels]: cosines, then sines."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=times.device) / half
    angles = times.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TwoLayers(nn.Module):
    """A linear layer, SiLU, a linear layer."""

    def __init__(self, inner: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inner, width, dtype=dtype)
        self.linear_2 = nn.Linear(width, width, dtype=dtype)

    def forward(self, values: Tensor) -> Tensor:
        """[b, inner] -> [b, width]."""
        return self.linear_2(F.silu(self.linear_1(values)))


class FeedForward(MegatronModule):
    """Two linear layers with a GELU between."""

    def __init__(
        self, config: TransformerConfig, tp: ProcessGroup, lora: LoraOptions | None = None
    ) -> None:
        super().__init__(config)
        width, inner = config.hidden_size, config.ffn_hidden_size
        adapters = {name: target(lora, name) for name in ("linear_fc1", "linear_fc2")}
        self.linear_fc1 = column_parallel(config, tp, width, inner, lora=adapters["linear_fc1"])
        self.linear_fc2 = row_parallel(config, tp, inner, width, adapters["linear_fc2"])

    def forward(self, tokens: Tensor) -> Tensor:
        """[s, b, h] -> the same."""
        return self.linear_fc2(F.gelu(self.linear_fc1(tokens)[0], approximate="tanh"))[0]
