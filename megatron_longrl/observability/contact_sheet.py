"""A sheet of pictures with their captions, as one PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longrl.atomic_file import writable

if TYPE_CHECKING:
    import numpy as np

_LEAST_SIDE = 96
"""Pixels to which a small picture is enlarged, so that its caption has room."""
_LINE = 12
_GAP = 6


@dataclass(frozen=True)
class SheetRow:
    """The pictures of one prompt."""

    caption: str
    pictures: Sequence[np.ndarray]
    """uint8 [height, width, 3]."""
    notes: Sequence[str]
    """A short text below each picture."""


def write_sheet(path: Path | None, rows: Sequence[SheetRow]) -> np.ndarray:
    """Draw the sheet, one row of pictures for each prompt; returns uint8 [height, width, 3].

    Args:
        path: the path of the PNG file, whose folder is created; None writes no file.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = rows[0].pictures[0].shape[:2]
    scale = max(1, -(-_LEAST_SIDE // min(height, width)))
    height, width = height * scale, width * scale
    columns = max(len(row.pictures) for row in rows)
    row_height = height + 2 * _LINE + 2 * _GAP
    sheet = Image.new("RGB", (_GAP + columns * (width + _GAP), len(rows) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * row_height
        draw.text((_GAP, top), row.caption, fill="black")
        for column, (pixels, note) in enumerate(zip(row.pictures, row.notes, strict=True)):
            left = _GAP + column * (width + _GAP)
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top + _LINE + _GAP))
            draw.text((left, top + _LINE + _GAP + height), note, fill="black")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writable(path) as free:
            sheet.save(free, "PNG")
    return np.asarray(sheet)
