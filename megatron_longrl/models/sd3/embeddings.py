"""Inputs of the transformer: patches of latents with their positions, time, and text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megatron_longrl.models.flow.layers import LONGEST_PERIOD, TwoLayers, time_sinusoids

_TIME_CHANNELS = 256


def patchify(latents: Tensor, size: int) -> Tensor:
    """[b, c, h, w] -> [tokens, b, c * size * size], row by row."""
    b, c, h, w = latents.shape
    patches = latents.view(b, c, h // size, size, w // size, size)
    return patches.permute(2, 4, 0, 1, 3, 5).reshape(-1, b, c * size * size)


def unpatchify(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """[tokens, b, size * size * c] -> [b, c, height, width]: channels are last in a token."""
    rows, columns = height // size, width // size
    patches = tokens.view(rows, columns, tokens.shape[1], size, size, -1)
    return patches.permute(2, 5, 0, 3, 1, 4).reshape(tokens.shape[1], -1, height, width)


def position_table(side: int, width: int, base: int) -> Tensor:
    """[1, side * side, width]: sines and cosines of the column, then of the row.

    Args:
        base: the side of the grid whose positions are whole numbers; a larger table counts in
            fractions, so that its whole range is the same.
    """
    places = torch.arange(side, dtype=torch.float32) / (side / base)
    channels = torch.arange(width // 4, dtype=torch.float64) / (width / 4)
    angles = places.double()[:, None] / LONGEST_PERIOD**channels
    of_axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = of_axis[None].expand(side, -1, -1)
    rows = of_axis[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)[None].float()


class PatchEmbedding(nn.Module):
    """Latents [b, c, h, w] -> tokens [tokens, b, width] with their positions.

    Args:
        side: the side of the table of positions.
        base: see :func:`position_table`.
    """

    def __init__(
        self, channels: int, size: int, width: int, side: int, base: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.size, self.side = size, side
        self.proj = nn.Linear(channels * size * size, width, dtype=dtype)
        # Never trained; checkpoints of diffusers hold it.
        table = position_table(side, width, base).to(dtype)
        self.pos_embed = nn.Parameter(table, requires_grad=False)

    def forward(self, latents: Tensor, tokens: slice) -> Tensor:
        """The tokens of one shard."""
        patches = patchify(latents, self.size)[tokens]
        return self.proj(patches) + self._positions(*latents.shape[-2:])[tokens, None]

    def _positions(self, height: int, width: int) -> Tensor:
        """[tokens, width]: the middle of the table."""
        rows, columns = height // self.size, width // self.size
        top, left = (self.side - rows) // 2, (self.side - columns) // 2
        table = self.pos_embed.view(self.side, self.side, -1)
        return table[top : top + rows, left : left + columns].flatten(0, 1)


class TimeTextEmbedding(nn.Module):
    """The embedding of the time and of the whole prompt, which modulates every layer."""

    def __init__(self, pooled: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayers(_TIME_CHANNELS, width, dtype)
        self.text_embedder = TwoLayers(pooled, width, dtype)

    def forward(self, times: Tensor, pooled: Tensor) -> Tensor:
        """Times [b] and embeddings of prompts [b, pooled] -> [b, width]."""
        of_time = self.timestep_embedder(time_sinusoids(times, _TIME_CHANNELS).to(pooled.dtype))
        return of_time + self.text_embedder(pooled)
