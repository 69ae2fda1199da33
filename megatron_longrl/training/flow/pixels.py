"""The pixels of a row of pre-training: its picture, or the first frames of its film."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megatron_longrl.data.rows import Row, RowError
from megatron_longrl.errors import brief
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.models.flow.section import FlowSection

if TYPE_CHECKING:
    from PIL import Image

_CHUNK_BYTES = 64 * 2**20


def pixels_of(row: Row, section: FlowSection) -> np.ndarray:
    """uint8 [height, width, 3] of a picture, or [frames, height, width, 3] of a film; cut and
    scaled to the size of the run.

    Raises:
        RowError: the row has none, or it cannot be read.
    """
    size = (section.picture_width, section.picture_height)
    frames = section.frames
    if frames == 1 and row.images:
        return _picture(row, size)[None]
    return _picture(row, size) if frames is None else _film(row, frames, size)


def _picture(row: Row, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image, ImageOps

    if len(row.images) != 1:
        raise RowError(row.source, "pre-training takes one image a row; correct or remove it")
    try:
        with Image.open(row.images[0]) as picture:
            whole = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RowError(row.source, f"{row.images[0]} cannot be read: {brief(error)}") from None
    return _fitted(whole, size)


def _film(row: Row, frames: int, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    from megatron_longrl.media.modalities.video.probe import probe
    from megatron_longrl.media.modalities.video.pyav import decode_in_chunks

    if len(row.videos) != 1:
        raise RowError(row.source, "pre-training takes one video a row; correct or remove it")
    path = str(row.videos[0])
    try:
        found = probe(path).num_frames
        if found < frames:
            raise RowError(
                row.source,
                f"{path} has {found} frames, fewer than --film-frames {frames}: remove the row, or "
                "choose fewer",
            )
        film = [
            _fitted(Image.fromarray(frame), size)
            for _, chunk in decode_in_chunks(path, range(frames), _CHUNK_BYTES)
            for frame in chunk
        ]
    except MediaError as error:
        raise RowError(row.source, str(error)) from None
    return np.stack(film)


def _fitted(whole: Image.Image, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image, ImageOps

    if whole.size != size:
        whole = ImageOps.fit(whole, size, Image.Resampling.BICUBIC)
    return np.array(whole)
