"""Initial weights: every layer begins as the identity, and every velocity as 0."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.models.sd3.config import SD3Section
from megatron_longrl.models.sd3.embeddings import position_table

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_ZERO = ("norm1.linear.weight", "norm1_context.linear.weight", "norm_out.linear.weight")
"""Modulations, gates among them: https://arxiv.org/abs/2212.09748, section 3.2."""


def draw(config: ModelConfig, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """The initial value of a whole tensor, by its name in the mapping table."""
    if name.endswith("pos_embed.pos_embed"):
        family = config.family_as(SD3Section)
        base = family.latent_sample_size // family.latent_patch_size
        return position_table(family.pos_embed_max_size, config.model.hidden_size, base)
    if name.endswith((".bias", "/proj_out.weight", *_ZERO)):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5
