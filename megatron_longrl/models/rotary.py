"""Multimodal rotary embedding (M-RoPE, https://arxiv.org/abs/2409.12191) at given positions.

Every rotary channel turns with one of three positions: time, height or width. Qwen2.5-VL gives them
contiguous channels, Qwen3-VL deals the channels out in turn. Three equal positions make it ordinary
rotary embedding, which is what text is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_longrl.models.text.kinds import LLAMA3_SCALING


def channel_axes(sections: Sequence[int], *, interleaved: bool) -> Tensor:
    """Which position each rotary channel turns with: 0 time, 1 height, 2 width; long [d / 2].

    Args:
        sections: channels of time, height and width; their sum is half a head's channels.
        interleaved: channels 1, 4, 7, … are height's and 2, 5, 8, … width's, as many as they have;
            all others are time's. Else each has its channels in one run.
    """
    if not interleaved:
        return torch.repeat_interleave(torch.arange(3), torch.tensor(list(sections)))
    axes = torch.zeros(sum(sections), dtype=torch.long)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def rotary_angles(positions: Tensor, inverse_frequencies: Tensor, axes: Tensor) -> Tensor:
    """Angles by which the channels of queries and keys turn.

    Args:
        positions: long [b, s, 3]: time, height, width.
        inverse_frequencies: float32 [d / 2].
        axes: see :func:`channel_axes`.

    Returns:
        float32 [s, b, 1, d], both halves of the channels alike, as megatron-core's attention takes
        it.
    """
    chosen = positions.transpose(0, 1)[:, :, axes.to(positions.device)].float()  # [s, b, d / 2]
    angles = chosen * inverse_frequencies
    return torch.cat([angles, angles], dim=-1)[:, :, None]


def llama3_frequencies(inverse_frequencies: Tensor, factor: float) -> Tensor:
    """Llama 3.1's scaling: wavelengths beyond the old context grow by ``factor``, short ones stay.

    Between the two the growth is interpolated, as in transformers' modeling_rope_utils.py.
    """
    context = LLAMA3_SCALING["original_max_position_embeddings"]
    low, high = LLAMA3_SCALING["low_freq_factor"], LLAMA3_SCALING["high_freq_factor"]
    turns = context * inverse_frequencies / (2 * math.pi)  # within the old context
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return inverse_frequencies * (share + (1 - share) / factor)
