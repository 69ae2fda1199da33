"""The cost model: operations of the model, and seconds of a sequence on one rank or several.

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
"""Number of operators in a layer's forward pass, which bounds its time for short sequences."""

BACKWARD = 2
"""Number of forward passes that cost as much as one backward pass."""


@dataclass(frozen=True)
class HardwareProfile:
    """Speeds of a rank's computation and of the exchanges in its group."""

    ranks: int = 1
    """Number of ranks in the group."""
    flops: float = 1.5e14
    """Floating-point operations per second in matrix products of the training dtype."""
    bandwidth: float = 5e10
    """Bytes per second that arrive at a rank in an all-gather."""
    latency: float = 3e-5
    """Seconds of an empty all-gather."""
    kernel: float = 5e-6
    """Seconds of an operator on an empty tensor."""

    @classmethod
    def restored(
        cls, saved: Mapping[str, Any] | None, measured: HardwareProfile
    ) -> HardwareProfile:
        """Return the profile that a run used before it was interrupted, unless its group had
        another size.
        """
        if saved is None or saved.get("ranks") != measured.ranks:
            return measured
        return cls(**saved)


NOMINAL_HARDWARE = {
    "cpu": HardwareProfile(flops=5.5e10, bandwidth=3e8, latency=6e-4, kernel=5e-6),
    "cuda": HardwareProfile(),
}
"""Profiles by platform: an AVX2 core with gloo, as measured, and an A100 with NVLink, by its data
sheet. They are fixed, so that the same run makes the same choices everywhere."""


@dataclass(frozen=True)
class SequenceSize:
    """The size of a sequence, from which its cost follows for any model."""

    tokens: int
    """Number of tokens."""
    pairs: int
    """Number of pairs of query and key that the mask allows."""
    predicted: int
    """Number of tokens whose logits are computed."""

    @classmethod
    def of(cls, prompt: int, responses: Sequence[int]) -> SequenceSize:
        """Return the size of a prompt of ``prompt`` tokens with responses of these lengths."""
        stem, total = prompt - 1, sum(responses)
        branches = sum(stem * r + r * (r + 1) // 2 for r in responses)
        return cls(stem + total, stem * (stem + 1) // 2 + branches, total)

    @classmethod
    def packed(cls, parts: Sequence[SequenceSize]) -> SequenceSize:
        """Return the size of a sequence of several samples that do not see each other."""
        return cls(
            sum(part.tokens for part in parts),
            sum(part.pairs for part in parts),
            sum(part.predicted for part in parts),
        )


class ModelCost:
    """The number of operations of a forward pass through a configuration's model.

    Args:
        config: the configuration, with ``vocab_size``.
    """

    def __init__(self, config: ModelConfig) -> None:
        h, width = (
            config.model.hidden_size,
            config.model.num_attention_heads * config.model.kv_channels,
        )
        self.layers = config.model.num_layers
        self.kv_width = 2 * config.model.num_query_groups * config.model.kv_channels
        """Number of key and value channels of a layer."""
        self.bytes_per_value = 2 if config.training.bf16 else 4
        self.per_token = (
            2.0
            * self.layers
            * (h * (2 * width + self.kv_width) + 3 * h * config.model.ffn_hidden_size)
        )
        """Number of operations per token in linear layers, without the output layer."""
        self.per_pair = 4.0 * self.layers * width
        self.per_logit = 2.0 * h * config.padded_vocab_size
        self.per_frame = config.family.frame_flops(config.model.hidden_size)

    def forward(self, sequence: SequenceSize) -> float:
        """Return the number of operations of the language model."""
        return (
            self.per_token * sequence.tokens
            + self.per_pair * sequence.pairs
            + self.per_logit * sequence.predicted
        )

    def seconds(
        self, sequence: SequenceSize, hardware: HardwareProfile, passes: int, ranks: int
    ) -> float:
        """Return the seconds of a sequence that is sharded over ``ranks`` ranks.

        Logits are computed where the responses lie, which is on one rank when they are short.

        Args:
            passes: number of forward passes; a backward pass counts as ``BACKWARD`` of them.
        """
        logits = self.per_logit * sequence.predicted
        compute = (self.forward(sequence) - logits) / ranks + logits
        received = self.bytes_per_value * self.kv_width * sequence.tokens * (ranks - 1) / ranks
        exchange = 0.0
        if ranks > 1:
            exchange = self.layers * (hardware.latency + received / hardware.bandwidth)
        overhead = self.layers * _KERNELS_PER_LAYER * hardware.kernel
        # Keys and values travel once in each forward, their gradients once in the backward pass.
        exchanges = passes - BACKWARD + 1 if passes > BACKWARD else passes
        return passes * (compute / hardware.flops + overhead) + exchanges * exchange
