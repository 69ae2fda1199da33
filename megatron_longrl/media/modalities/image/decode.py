"""Pixels of images and of their tiles, resized and normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_longrl.media.modalities.image.reader import read_image
from megatron_longrl.media.modalities.visual.full_frames import FullFrames
from megatron_longrl.media.modalities.visual.spec import VisualSpec


def decode_image(spec: VisualSpec, positions: Sequence[int], *, upright: bool) -> Tensor:
    """Pixels of an image, or of some of its tiles.

    Args:
        positions: which of ``spec.frame_indices``: the image itself, repeated; or the numbers of
            tiles, counted over the resized copies into which ``spec.preprocess.tilings`` cuts it.
        upright: whether it is turned as its EXIF orientation says.

    Returns:
        float32 [f, 3, height, width].

    Raises:
        MediaError: the file cannot be read.
    """
    how = spec.preprocess
    result = torch.empty(len(positions), 3, how.height, how.width)
    if not positions:
        return result
    image = torch.from_numpy(read_image(spec.path, upright=upright))[None]
    if not how.tilings:
        FullFrames(image, how).write(result, range(len(positions)))
        return result
    indices = [spec.frame_indices[position] for position in positions]
    first = 0
    for rows, columns in how.tilings:
        behind = first + rows * columns
        here = [row for row, index in enumerate(indices) if first <= index < behind]
        if here:
            tiles = [indices[row] - first for row in here]
            FullFrames(image, how, (rows, columns), tiles).write(result, here)
        first = behind
    return result
