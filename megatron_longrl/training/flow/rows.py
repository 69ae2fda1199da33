"""Micro-batches of flow-matching models: rows of noisy latents with their prompts.

Every rank of a replica holds all rows whole; the model shards them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextEmbedding:
    """The output of the frozen text encoders for a prompt."""

    tokens: Tensor
    """[t, d]."""
    pooled: Tensor
    """[e]."""

    @staticmethod
    def stack(embeddings: Sequence[TextEmbedding]) -> tuple[Tensor, Tensor]:
        """[b, t, d] and [b, e]."""
        return (
            torch.stack([embedding.tokens for embedding in embeddings]),
            torch.stack([embedding.pooled for embedding in embeddings]),
        )


@dataclass(frozen=True)
class NoisyRows:
    """Rows for which a velocity is predicted."""

    latents: Tensor
    """float32 [b, c, h, w]."""
    sigmas: Tensor
    """float32 [b]: the noise levels."""
    prompts: tuple[TextEmbedding, ...]
    """One for each row."""

    def levels(self, values: Tensor) -> Tensor:
        """[b] -> [b, 1, ...], which broadcasts against the latents."""
        return values.view(-1, *[1] * (self.latents.dim() - 1))


@dataclass(frozen=True)
class CleanRows(NoisyRows):
    """Rows whose clean samples are known."""

    velocities: Tensor
    """float32 [b, c, h, w]: noise - clean, which the network is to predict."""


@dataclass(frozen=True)
class StepRows(NoisyRows):
    """Rows that are one stochastic step of sampling each."""

    ends: Tensor
    """float32 [b]: the noise levels that the steps led to."""
    second: float
    """The second noise level of the schedule."""
    reached: Tensor
    """float32 [b, c, h, w]: the latents after the step."""
    advantages: Tensor
    """float32 [b]."""
    old_logprobs: Tensor
    """float32 [b]: of the steps, by the weights that sampled."""
    old_means: Tensor
    """float32 [b, c, h, w]: of the steps, by the same weights."""
    reference_velocities: Tensor | None = None
    """float32 [b, c, h, w], where the divergence from a reference is asked for."""


@dataclass(frozen=True)
class ContrastRows(NoisyRows):
    """Sampled latents that were noised again."""

    clean: Tensor
    """float32 [b, c, h, w]."""
    good: Tensor
    """float32 [b]: from 0, the worst, to 1."""
    old_velocities: Tensor
    """float32 [b, c, h, w]."""
    reference_velocities: Tensor | None = None
    """float32 [b, c, h, w], see :class:`StepRows`."""
