"""Features of a picture at several scales (S2, https://arxiv.org/abs/2403.13043).

At every scale the picture is a square, or grid, of tiles of the size that the tower takes. Their
features are put together again, resized to one grid, and joined along the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_longrl.media.modalities.visual.preprocess_spec import Tiling


def cut(pictures: Tensor, tiling: Tiling) -> Tensor:
    """[f, c, H, W] -> [f * rows * columns, c, H / rows, W / columns], row by row."""
    rows, columns = tiling
    tiles = pictures.unflatten(2, (rows, -1)).unflatten(4, (columns, -1))
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def paste(tiles: Tensor, tiling: Tiling) -> Tensor:
    """The inverse of :func:`cut`."""
    grid = tiles.unflatten(0, (-1, *tiling))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def as_picture(features: Tensor) -> Tensor:
    """Features of the patches of square frames, row by row: [f, n, c] -> [f, c, side, side]."""
    side = round(features.shape[1] ** 0.5)
    return features.transpose(1, 2).unflatten(2, (side, side))


def as_patches(picture: Tensor) -> Tensor:
    """The inverse of :func:`as_picture`, of any height and width."""
    return picture.flatten(2).transpose(1, 2)


def join_scales(pictures: Sequence[Tensor], output: int) -> Tensor:
    """Features at all scales, [f, c, H_k, W_k], along the channels of the grid of one of them.

    Averages of areas, also where a grid is made finer.

    Args:
        output: number of the scale whose grid it is.
    """
    size = pictures[output].shape[-2:]
    return torch.cat([_resized(picture, size, "area") for picture in pictures], dim=1)


def scaled_features(
    tower: Callable[[Tensor], Tensor], pixels: Tensor, sides: Sequence[int], output: int
) -> Tensor:
    """S2 of square frames.

    Args:
        tower: [f, 3, S, S] -> [f, n, c].
        pixels: [f, 3, R, R], at the largest scale.
        sides: the side of the square of tiles at each scale; R is S times the largest.
        output: see :func:`join_scales`.

    Returns:
        [f, n * sides[output]^2, c * scales].
    """
    tile = pixels.shape[-1] // sides[-1]
    pictures = []
    for side in sides:
        copy = _resized(pixels, torch.Size((tile * side, tile * side)), "bicubic")
        pictures.append(paste(as_picture(tower(cut(copy, (side, side)))), (side, side)))
    return as_patches(join_scales(pictures, output))


def projected_tiles(
    project: Callable[[Tensor], Tensor], features: Tensor, tilings: Sequence[Tiling], output: int
) -> Tensor:
    """Embeddings of images of which all tiles at all scales have been through the tower.

    The joined features are cut into tiles once more, because the projector takes squares.

    Args:
        project: [f, n, c * scales] -> [f, m, h].
        features: [images * tiles, n, c].
        tilings: the tilings of every scale.
        output: see :func:`join_scales`.

    Returns:
        [images, m * tiles at the scale of ``output``, h], row by row over the whole image.
    """
    counts = [rows * columns for rows, columns in tilings]
    scales = as_picture(features).unflatten(0, (-1, sum(counts))).split(counts, dim=1)
    pictures = [
        paste(tiles.flatten(0, 1), tiling) for tiles, tiling in zip(scales, tilings, strict=True)
    ]
    joined = cut(join_scales(pictures, output), tilings[output])
    return as_patches(paste(as_picture(project(as_patches(joined))), tilings[output]))


def _resized(picture: Tensor, size: torch.Size, mode: str) -> Tensor:
    """Resize in fp32, as VILA does."""
    if picture.shape[-2:] == size:
        return picture
    return F.interpolate(picture.float(), size=size, mode=mode).to(picture.dtype)
