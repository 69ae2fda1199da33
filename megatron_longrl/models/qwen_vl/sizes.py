"""The size to which the Qwen-VL families resize frames: their own proportions within a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MOST_SLENDER = 200


@dataclass(frozen=True)
class PixelBudget:
    """Fewest and most pixels: a frame, or all frames of a video."""

    fewest: int
    most: int


def resized(
    height: int, width: int, *, factor: int, budget: PixelBudget, frames: int = 1, units: int = 1
) -> tuple[int, int]:
    """Height and width, multiples of ``factor`` whose product lies within the budget.

    The rule is ``smart_resize`` of transformers' processors: Qwen2.5-VL counts the pixels of one
    frame, Qwen3-VL those of all ``frames``.

    Args:
        units: frames that count before the budget is exceeded (``frames`` rounded to temporal
            patches).

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) / min(height, width) > _MOST_SLENDER:
        raise ValueError(f"{width} x {height} pixels are more slender than {_MOST_SLENDER} : 1")
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if units * tall * wide > budget.most:
        scale = math.sqrt(frames * height * width / budget.most)
        tall = max(factor, math.floor(height / scale / factor) * factor)
        wide = max(factor, math.floor(width / scale / factor) * factor)
    elif units * tall * wide < budget.fewest:
        scale = math.sqrt(budget.fewest / (frames * height * width))
        tall = math.ceil(height * scale / factor) * factor
        wide = math.ceil(width * scale / factor) * factor
    return tall, wide
