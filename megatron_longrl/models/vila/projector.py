"""VILA's projectors from patch features to language-model embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config import Config


class Downsample2x2(torch.nn.Module):
    """Concatenate 2x2 neighbouring patches: [f, g * g, c] -> [f, ceil(g/2)^2, 4c].

    Odd grids are padded with zeros. Cells come out column by column, which is the order of VILA's
    ``mlp_downsample`` (its later ``_fix`` variants go row by row).
    """

    def forward(self, features: Tensor) -> Tensor:
        """Downsample."""
        f, patches, c = features.shape
        grid = int(patches**0.5)
        x = features.reshape(f, grid, grid, c)
        if grid % 2:
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
        half = x.shape[1] // 2
        x = x.reshape(f, half, 2, half, 2, c)  # row, row parity, column, column parity
        return x.permute(0, 3, 1, 2, 4, 5).reshape(f, half * half, 4 * c)


class MlpDownsampleProjector(torch.nn.Module):
    """``mlp_downsample``: 2x2 downsampling, LayerNorm, Linear, GELU, Linear.

    Parameter names are those of VILA's ``mm_projector`` checkpoints.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = 4 * config.vision_hidden_size
        dtype, device = config.params_dtype, platform.device
        self.layers = torch.nn.Sequential(
            Downsample2x2(),
            torch.nn.LayerNorm(width, dtype=dtype, device=device),
            torch.nn.Linear(width, config.hidden_size, dtype=dtype, device=device),
            torch.nn.GELU(),
            torch.nn.Linear(config.hidden_size, config.hidden_size, dtype=dtype, device=device),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[f, patches, c] -> [f, tokens, h]."""
        return self.layers(features)


PROJECTORS = {"mlp_downsample": MlpDownsampleProjector}
"""Projector classes by the name that VILA's configuration uses."""


def build_projector(config: Config) -> torch.nn.Module:
    """The projector that the configuration names.

    Raises:
        UserError: the kind is not known.
    """
    try:
        return PROJECTORS[config.projector_type](config)
    except KeyError:
        raise UserError(
            f"--projector-type {config.projector_type} is not known: use one of "
            f"{', '.join(PROJECTORS)}"
        ) from None
