"""The grid of patches of a frame: their order, their places, and the windows that they form.

Patches are ordered block by block: the merge x merge patches that become one token are adjacent,
blocks go row by row. All functions speak of one frame (a temporal patch) of ``rows`` x ``columns``
patches.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def patchify(frames: Tensor, patch: int, merge: int) -> Tensor:
    """Cut frames into patches.

    Args:
        frames: [u, t, 3, H, W]: t consecutive frames make one temporal patch; H and W are multiples
            of ``patch * merge``.

    Returns:
        [u, rows * columns, 3 * t * patch * patch], channels first within a patch, then time.
    """
    units, times, channels, height, width = frames.shape
    rows, columns = height // patch, width // patch
    cut = frames.reshape(
        units, times, channels, rows // merge, merge, patch, columns // merge, merge, patch
    )
    # unit, block row, block column, row, column, channel, time, y, x
    cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return cut.reshape(units, rows * columns, channels * times * patch * patch)


@lru_cache(maxsize=256)
def patch_positions(rows: int, columns: int, merge: int) -> Tensor:
    """Row and column of every patch, long [rows * columns, 2]."""
    positions = torch.stack(
        torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1
    )
    blocks = positions.reshape(rows // merge, merge, columns // merge, merge, 2)
    return blocks.transpose(1, 2).reshape(-1, 2)


@lru_cache(maxsize=256)
def window_order(rows: int, columns: int, merge: int, window: int) -> tuple[Tensor, Tensor]:
    """Order of a frame's blocks in which windows of equal size are adjacent.

    Windows of ``window`` x ``window`` blocks tile the frame from its upper left corner; those at
    the right and lower edge may be smaller.

    Returns:
        long [blocks], the blocks in the new order; and long [k, 2], runs of equal windows: how
        many, and how many patches each has.
    """
    down, across = rows // merge, columns // merge
    blocks = torch.arange(down * across).reshape(down, across)
    runs: dict[int, list[Tensor]] = {}
    for strip in blocks.split(window):
        for tile in strip.split(window, dim=1):
            runs.setdefault(tile.numel(), []).append(tile.flatten())
    order = torch.cat([tile for tiles in runs.values() for tile in tiles])
    sizes = [[len(tiles), size * merge**2] for size, tiles in runs.items()]
    return order, torch.tensor(sizes)


def spread(blocks: Tensor, merge: int) -> Tensor:
    """Order of patches that goes with an order of blocks."""
    unit = merge**2
    return (blocks[:, None] * unit + torch.arange(unit)).flatten()


@lru_cache(maxsize=256)
def bilinear_taps(rows: int, columns: int, merge: int, side: int) -> tuple[Tensor, Tensor]:
    """Return indices and weights that resample a ``side`` x ``side`` table of positions to a
    frame's grid.

    Bilinear, corners on corners.

    Returns:
        long [rows * columns, 4], entries of the table, and their float32 weights.
    """
    positions = patch_positions(rows, columns, merge)
    taps, weights = [], []
    for axis, size in enumerate((rows, columns)):
        at = torch.linspace(0, side - 1, size)[positions[:, axis]]
        low = at.floor()
        taps.append(torch.stack([low, (low + 1).clamp(max=side - 1)], dim=1).long())
        weights.append(torch.stack([1 - (at - low), at - low], dim=1))
    entries = (taps[0][:, :, None] * side + taps[1][:, None]).flatten(1)
    return entries, (weights[0][:, :, None] * weights[1][:, None]).flatten(1)
