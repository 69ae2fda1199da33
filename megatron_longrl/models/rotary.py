"""Multimodal rotary embedding (M-RoPE, https://arxiv.org/abs/2409.12191) at given positions.

Every rotary channel turns with one of three positions: time, height or width. Qwen2.5-VL gives them
contiguous channels, Qwen3-VL interleaves the channels. Three equal positions make it ordinary
rotary embedding, which is what text is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron_longrl.config.rotary import RotarySection


def channel_axes(sections: Sequence[int], *, interleaved: bool) -> Tensor:
    """Return the axis of position by which each rotary channel turns: 0 time, 1 height, 2 width;
    long [d / 2].

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


def scaled_frequencies(inverse_frequencies: Tensor, rotary: RotarySection) -> Tensor:
    """Frequencies of the lengthened context, float32 [d / 2], as ``--rope-scaling-type`` says.

    Args:
        inverse_frequencies: the inverse frequencies of the original context.
    """
    factor = rotary.rope_scaling_factor
    if factor is None or rotary.rope_scaling_type == "dynamic":
        return inverse_frequencies
    if rotary.rope_scaling_type == "linear":
        return inverse_frequencies / factor
    if rotary.rope_scaling_type == "yarn":
        return yarn_frequencies(inverse_frequencies, factor, rotary)
    return llama3_frequencies(inverse_frequencies, factor, rotary)


def attention_sharpening(rotary: RotarySection) -> float:
    """Return the factor by which YaRN lengthens turned queries and turned keys.

    Section 3.4 of https://arxiv.org/abs/2309.00071, unless the checkpoint says otherwise.
    """
    factor = rotary.rope_scaling_factor
    if factor is None or rotary.rope_scaling_type != "yarn":
        return 1.0
    return rotary.yarn_attention_factor or yarn_magnitude(factor)


def yarn_magnitude(factor: float, slope: float = 1.0) -> float:
    """0.1 slope ln(factor) + 1, or 1 where nothing is lengthened."""
    return 0.1 * slope * math.log(factor) + 1 if factor > 1 else 1.0


def yarn_frequencies(inverse_frequencies: Tensor, factor: float, rotary: RotarySection) -> Tensor:
    """YaRN's "NTK-by-parts" (section 3.2 of https://arxiv.org/abs/2309.00071).

    Between the channel of ``yarn_beta_fast`` turns within the original context and that of
    ``yarn_beta_slow`` turns, the growth is interpolated over the channels' numbers, as in
    transformers' modeling_rope_utils.py.
    """
    context = rotary.yarn_original_max_position_embeddings
    assert context is not None, "a rule asks for it"
    channels = 2 * len(inverse_frequencies)

    def channel_of(turns: float) -> float:
        wavelength = context / turns
        return channels * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rotary.rotary_base))

    first, last = channel_of(rotary.yarn_beta_fast), channel_of(rotary.yarn_beta_slow)
    if rotary.yarn_correction_range_round_to_int:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, channels - 1)
    width = (last - first) or 0.001
    ramp = (torch.arange(len(inverse_frequencies), dtype=torch.float32) - first) / width
    grown = ramp.clamp(0, 1).to(inverse_frequencies.device)
    return inverse_frequencies / factor * grown + inverse_frequencies * (1 - grown)


def llama3_frequencies(inverse_frequencies: Tensor, factor: float, rotary: RotarySection) -> Tensor:
    """Llama 3.1's scaling: wavelengths beyond the old context grow by ``factor``, short ones stay.

    Between the two the growth is interpolated, as in transformers' modeling_rope_utils.py.
    """
    context = rotary.llama3_original_max_position_embeddings
    low, high = rotary.llama3_low_freq_factor, rotary.llama3_high_freq_factor
    turns = context * inverse_frequencies / (2 * math.pi)  # within the old context
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return inverse_frequencies * (share + (1 - share) / factor)
