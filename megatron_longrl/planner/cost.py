"""Floating-point operations of the model, and seconds of a row on one rank or on several.

A multiply-add counts as two operations. Attention counts the pairs of query and key that the mask
allows, so that nothing masked is work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_KERNELS_PER_LAYER = 30
"""Operators of a layer's forward pass: what it takes at least, however short the row."""

BACKWARD = 2
"""Operations of a backward pass, in forward passes."""


@dataclass(frozen=True)
class HardwareProfile:
    """What a rank computes and what its group exchanges."""

    ranks: int = 1
    """Of the group that exchanges."""

    flops: float = 1.5e14
    """Floating-point operations per second in matrix products of the training dtype."""
    bandwidth: float = 5e10
    """Bytes per second that arrive at a rank in an all-gather."""
    latency: float = 3e-5
    """Seconds of an all-gather of nothing."""
    kernel: float = 5e-6
    """Seconds of an operator on nothing."""

    @classmethod
    def restored(
        cls, saved: Mapping[str, Any] | None, measured: HardwareProfile
    ) -> HardwareProfile:
        """What a run reckoned with before it was interrupted, unless its group was another."""
        if saved is None or saved.get("ranks") != measured.ranks:
            return measured
        return cls(**saved)


NOMINAL_HARDWARE = {
    "cpu": HardwareProfile(flops=5.5e10, bandwidth=3e8, latency=6e-4, kernel=5e-6),
    "cuda": HardwareProfile(),
}
"""By platform: an AVX2 core with gloo, as measured; an A100 with NVLink, by its data sheet. Fixed,
so that the same run makes the same choices everywhere."""


@dataclass(frozen=True)
class RowSize:
    """What a row of tokens costs, whatever the model."""

    tokens: int
    """Tokens computed."""
    pairs: int
    """Pairs of query and key."""
    predicted: int
    """Tokens whose logits are computed."""

    @classmethod
    def of(cls, prompt: int, responses: Sequence[int]) -> RowSize:
        """A prompt of ``prompt`` tokens behind which responses of these lengths branch off."""
        stem, total = prompt - 1, sum(responses)
        branches = sum(stem * r + r * (r + 1) // 2 for r in responses)
        return cls(stem + total, stem * (stem + 1) // 2 + branches, total)

    @classmethod
    def packed(cls, parts: Sequence[RowSize]) -> RowSize:
        """Samples that share a row without seeing each other."""
        return cls(
            sum(part.tokens for part in parts),
            sum(part.pairs for part in parts),
            sum(part.predicted for part in parts),
        )


class ModelCost:
    """Operations of a forward pass through this configuration's model.

    Args:
        config: with ``vocab_size`` filled in.
    """

    def __init__(self, config: ModelConfig) -> None:
        h, width = (
            config.model.hidden_size,
            config.model.num_attention_heads * config.model.kv_channels,
        )
        self.layers = config.model.num_layers
        self.kv_width = 2 * config.model.num_query_groups * config.model.kv_channels
        """Key and value channels of a layer."""
        self.bytes_per_value = 2 if config.training.bf16 else 4
        self.per_token = (
            2.0
            * self.layers
            * (h * (2 * width + self.kv_width) + 3 * h * config.model.ffn_hidden_size)
        )
        """Operations per token in linear layers, without the output layer."""
        self.per_pair = 4.0 * self.layers * width
        self.per_logit_row = 2.0 * h * config.padded_vocab_size
        self.per_frame = config.family.frame_flops(config.model.hidden_size)

    def forward(self, row: RowSize) -> float:
        """Operations of the language model."""
        return (
            self.per_token * row.tokens
            + self.per_pair * row.pairs
            + self.per_logit_row * row.predicted
        )

    def seconds(self, row: RowSize, hardware: HardwareProfile, passes: int, ranks: int) -> float:
        """A row whose tokens are sharded over ``ranks``, or that one rank has whole.

        Logits are computed where the responses lie: on one rank when these are short.

        Args:
            passes: forward passes that the row goes through, a backward pass as ``BACKWARD`` ones.
        """
        logits = self.per_logit_row * row.predicted
        compute = (self.forward(row) - logits) / ranks + logits
        received = self.bytes_per_value * self.kv_width * row.tokens * (ranks - 1) / ranks
        exchange = 0.0
        if ranks > 1:
            exchange = self.layers * (hardware.latency + received / hardware.bandwidth)
        overhead = self.layers * _KERNELS_PER_LAYER * hardware.kernel
        # Keys and values travel once in each forward, their gradients once in the backward pass.
        exchanges = passes - BACKWARD + 1 if passes > BACKWARD else passes
        return passes * (compute / hardware.flops + overhead) + exchanges * exchange
