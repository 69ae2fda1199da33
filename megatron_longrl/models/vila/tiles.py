"""Into which grid of tiles VILA cuts an image."""

from __future__ import annotations

from megatron_longrl.media.modalities.visual.preprocess_spec import Tiling


def nearest_tiling(width: int, height: int, fewest: int, most: int, side: int) -> Tiling:
    """The grid whose proportions are nearest to an image's.

    The rule is that of VILA's llava/mm_utils.py: of two grids that are equally near, the one with
    more tiles is taken where they have less than twice the image's pixels. (Between equally many
    tiles VILA has the order of a Python set; here the narrower grid comes first.)

    Args:
        width, height: the size of the image in pixels.
        fewest, most: tiles.
        side: the side of a tile in pixels.
    """
    grids = [
        (rows, columns)
        for rows in range(1, most + 1)
        for columns in range(1, most // rows + 1)
        if rows * columns >= fewest
    ]
    best, least = (1, 1), float("inf")
    for rows, columns in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[1])):
        difference = abs(width / height - columns / rows)
        fills = width * height > 0.5 * side * side * rows * columns
        if difference < least or (difference == least and fills):
            best, least = (rows, columns), difference
    return best
