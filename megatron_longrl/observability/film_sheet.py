"""A sheet of films with their captions, which play side by side, as one WebP file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longrl.atomic_file import writable
from megatron_longrl.observability.contact_sheet import SheetRow, write_sheet

if TYPE_CHECKING:
    import numpy as np

_LARGEST_SIDE = 160
"""Pixels to which a frame is reduced: all frames of the sheet are held at once."""


def write_film_sheet(path: Path | None, rows: Sequence[SheetRow], fps: int) -> np.ndarray:
    """Draw the sheet, one row of films for each prompt; returns its frame in the middle, uint8
    [height, width, 3].

    Args:
        path: the path of the WebP file, whose folder is created; None writes no file.
        rows: rows with films, uint8 [frames, height, width, 3].
        fps: frames per second.
    """
    frames, height, width = rows[0].pictures[0].shape[:3]
    step = -(-max(height, width) // _LARGEST_SIDE)
    sheets = [
        write_sheet(
            None,
            [
                replace(row, pictures=[f[frame, ::step, ::step] for f in row.pictures])
                for row in rows
            ],
        )
        for frame in range(frames)
    ]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_film(path, sheets, fps)
    return sheets[frames // 2]


def write_film(path: Path, frames: Sequence[np.ndarray] | np.ndarray, fps: int) -> None:
    """Write a WebP file that plays again and again, and loses nothing.

    Args:
        frames: uint8 [height, width, 3] each.
        fps: frames per second.
    """
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    with writable(path) as free:
        first.save(
            *(free, "WEBP"),
            save_all=True,
            append_images=others,
            duration=round(1000 / fps),
            loop=0,
            lossless=True,
            method=0,
        )
