"""Inputs of the transformer: patches of latents, their positions, time, and text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_longrl.models.flow.layers import LONGEST_PERIOD, TwoLayers, time_sinusoids
from megatron_longrl.models.flow.linear import column_parallel
from megatron_longrl.models.wan.config import WanSection

MODULATIONS = 6
"""Vectors by which the time modulates a layer: shift, scale and gate of two sublayers."""


def patchify(latents: Tensor, size: int) -> Tensor:
    """[b, c, f, h, w] -> [tokens, b, c * size * size]: frame by frame, row by row."""
    b, c, f, h, w = latents.shape
    patches = latents.reshape(b, c, f, h // size, size, w // size, size)
    return patches.permute(2, 3, 5, 0, 1, 4, 6).reshape(-1, b, c * size * size)


def unpatchify(tokens: Tensor, size: int, grid: tuple[int, int, int]) -> Tensor:
    """[tokens, b, size * size * c] -> [b, c, f, h, w]: channels are last in a token.

    Args:
        grid: tokens along time, height and width.
    """
    batch = tokens.shape[1]
    patches = tokens.view(*grid, batch, size, size, -1)
    frames, rows, columns = grid
    # [f, rows, columns, b, size, size, c] -> [b, c, f, rows, size, columns, size]
    return patches.permute(3, 6, 0, 1, 4, 2, 5).reshape(
        batch, -1, frames, rows * size, columns * size
    )


class Rotary:
    """Rotations of queries and keys by the place of their token in time, height and width.

    Args:
        grid: tokens along the three axes.
        tokens: the tokens of this rank.
    """

    def __init__(
        self, head_width: int, grid: tuple[int, int, int], tokens: slice, device: torch.device
    ) -> None:
        of_side = 2 * (head_width // 6)
        widths = (head_width - 2 * of_side, of_side, of_side)
        places = torch.arange(grid[0] * grid[1] * grid[2], device=device)[tokens]
        axes = (
            places // (grid[1] * grid[2]),
            places // grid[2] % grid[1],
            places % grid[2],
        )
        angles = torch.cat(
            [_angles(axis, width) for axis, width in zip(axes, widths, strict=True)], dim=1
        )
        # [s, 1, 1, head_width / 2]
        self._cos = angles.cos().float()[:, None, None]
        self._sin = angles.sin().float()[:, None, None]

    def __call__(self, heads: Tensor) -> Tensor:
        """[s, b, heads, head_width]: neighbouring channels are a pair that is rotated."""
        first, second = heads.unflatten(-1, (-1, 2)).unbind(-1)
        pair = (
            first * self._cos - second * self._sin,
            first * self._sin + second * self._cos,
        )
        return torch.stack(pair, dim=-1).flatten(-2).type_as(heads)


def _angles(places: Tensor, width: int) -> Tensor:
    """float64 [s, width / 2]."""
    channels = torch.arange(0, width, 2, dtype=torch.float64, device=places.device) / width
    return places.double()[:, None] / LONGEST_PERIOD**channels


class TextProjection(nn.Module):
    """The width of text embeddings to that of the model."""

    def __init__(self, inner: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inner, width, dtype=dtype)
        self.linear_2 = nn.Linear(width, width, dtype=dtype)

    def forward(self, text: Tensor) -> Tensor:
        """[t, b, d] -> [t, b, h]."""
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class ConditionEmbedder(MegatronModule):
    """The time, once for all layers, and the text.

    The embedding of the time is computed in float32, as diffusers does.
    """

    def __init__(self, config: TransformerConfig, tp: ProcessGroup, family: WanSection) -> None:
        super().__init__(config)
        width = config.hidden_size
        self._channels = family.freq_dim
        self.time_embedder = TwoLayers(family.freq_dim, width, torch.float32)
        self.time_proj = column_parallel(config, tp, width, MODULATIONS * width, gather=True)
        self.text_embedder = TextProjection(family.text_dim, width, config.params_dtype)

    def forward(self, times: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The time's embedding [b, h] and its modulations [b, 6, h], and the text's [t, b, h].

        Args:
            times: [b], from 0 to 1000.
            text: [b, t, d].
        """
        dtype = self.config.params_dtype
        of_time = self.time_embedder(time_sinusoids(times, self._channels)).to(dtype)
        modulations = self.time_proj(F.silu(of_time))[0].unflatten(1, (MODULATIONS, -1))
        return of_time, modulations, self.text_embedder(text.to(dtype).transpose(0, 1))
