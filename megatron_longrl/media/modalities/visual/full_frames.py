"""Frames as a decoder gives them, on their way into the result of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec, Tiling
from megatron_longrl.media.modalities.visual.resize import resize_and_normalise


@dataclass
class FullFrames:
    """Some frames of a request at their full size."""

    frames: Tensor
    """uint8 [f, h, w, 3]."""
    preprocess: PreprocessSpec
    tiling: Tiling = (1, 1)
    """Into which the resized frame is cut, where it is an image that becomes tiles."""
    tiles: Sequence[int] = (0,)
    """Numbers of the tiles that are asked for, row by row."""

    def write(self, result: Tensor, rows: Sequence[int]) -> None:
        """Preprocess them into some rows of a result, float32 [f, 3, height, width]."""
        spec, (down, across) = self.preprocess, self.tiling
        size = (down * spec.height, across * spec.width)
        pixels = resize_and_normalise(self.frames, size, spec).cpu()
        if self.tiling != (1, 1):
            grid = pixels[0].unflatten(1, (down, -1)).unflatten(3, (across, -1))
            pixels = grid.permute(1, 3, 0, 2, 4).flatten(0, 1)[list(self.tiles)]
        result[list(rows)] = pixels
