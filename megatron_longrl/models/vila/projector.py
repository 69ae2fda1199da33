"""VILA's projectors from patch features to language-model embeddings.

A projector is a sequence of layers; its parameters have the names of VILA's ``mm_projector``
checkpoints, which count the layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.projector_kinds import downsampling, projector_layers
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.config.training import TrainingSection


class Downsample(nn.Module):
    """Concatenate neighbouring patches: [f, g * g, c] -> [f, ceil(g / k)^2, k * k * c].

    Grids that k does not divide are padded with zeros. Within a cell, patches go row by row.

    Args:
        side: k.
        by_columns: cells come out column by column, which is the order of the first
            ``mlp_downsample``; its later ``_fix`` variants go row by row.
    """

    def __init__(self, side: int, *, by_columns: bool = False) -> None:
        super().__init__()
        self.side = side
        self.by_columns = by_columns

    def forward(self, features: Tensor) -> Tensor:
        """Downsample."""
        f, patches, c = features.shape
        grid, side = int(patches**0.5), self.side
        x = features.reshape(f, grid, grid, c)
        missing = -grid % side
        if missing:
            x = F.pad(x, (0, 0, 0, missing, 0, missing))
        cells = x.shape[1] // side
        x = x.reshape(f, cells, side, cells, side, c)  # row, row in it, column, column in it
        axes = (0, 3, 1, 2, 4, 5) if self.by_columns else (0, 1, 3, 2, 4, 5)
        return x.permute(*axes).reshape(f, cells * cells, side * side * c)


class VilaProjector(nn.Module):
    """[f, patches, c] -> [f, tokens, h]."""

    def __init__(self, family: VilaSection, training: TrainingSection, model: ModelSection) -> None:
        super().__init__()
        kind = family.projector_type
        options: dict[str, Any] = {"dtype": training.params_dtype, "device": platform.device}
        layers: list[nn.Module] = []
        for what, inner, outer in projector_layers(
            kind, family.projector_input_width, model.hidden_size
        ):
            if what == "downsample":
                layers.append(Downsample(downsampling(kind), by_columns=kind == "mlp_downsample"))
            elif what == "gelu":
                layers.append(nn.GELU())
            elif what == "norm":
                layers.append(nn.LayerNorm(inner, **options))
            else:
                layers.append(nn.Linear(inner, outer, **options))
        # A single layer stands alone in VILA's checkpoints.
        self.layers = nn.Sequential(*layers) if kind != "linear" else layers[0]

    def forward(self, features: Tensor) -> Tensor:
        """Project."""
        return self.layers(features)
