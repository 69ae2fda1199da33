"""Frames at the size and on the scale of a vision tower, as Hugging Face's processors give them.

They resize by Pillow's antialiased bicubic filter, which rounds to whole levels between its two
passes, first along rows. torch's kernel for uint8 on a CPU does the same within a level, and within
ten at a few edges of saturated colours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec


def resize_and_normalise(frames: Tensor, size: tuple[int, int], spec: PreprocessSpec) -> Tensor:
    """Resize and normalise.

    Args:
        frames: uint8 [f, h, w, 3], red, green and blue.
        size: height and width of the result.
        spec: mean and standard deviation.

    Returns:
        float32 [f, 3, height, width] on the frames' device.
    """
    pixels = frames.permute(0, 3, 1, 2)
    resized = _resize(pixels, size) if frames.device.type == "cpu" else _by_passes(pixels, size)
    mean, std = (
        torch.tensor(channels, device=frames.device).mul(255).view(3, 1, 1)
        for channels in (spec.mean, spec.std)
    )
    return resized.contiguous().float().sub_(mean).div_(std)


def _by_passes(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize in passes that round, where torch has no kernel for uint8."""
    for target in ((pixels.shape[2], size[1]), size):
        pixels = _resize(pixels.float(), target).round().clamp(0, 255)
    return pixels


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(pixels, size, mode="bicubic", antialias=True)
