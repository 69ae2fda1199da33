"""Initial weights: every velocity begins as 0."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig


def draw(config: ModelConfig, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """The initial value of a whole tensor, by its name in the mapping table."""
    if name.endswith((".bias", "/proj_out.weight")):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    if name.endswith("scale_shift_table"):
        # As diffusers begins: gates are small, and none is 0.
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5
    return torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5
