"""Images, as Pillow reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from megatron_longrl.data.video_info import VideoError, VideoInfo


def probe_image(path: str | Path) -> VideoInfo:
    """What is in an image file: a video of one frame and no time.

    Raises:
        VideoError: not there, or not an image.
    """
    with _opened(path) as image:
        width, height = image.size
        return VideoInfo(1, 0.0, width, height, (image.format or "").lower(), 0.0, is_image=True)


def read_image(path: str | Path) -> np.ndarray:
    """Its pixels in red, green and blue, uint8 [h, w, 3].

    Raises:
        VideoError: not there, not an image, or truncated.
    """
    with _opened(path) as image:
        return np.array(image.convert("RGB"))


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError:
        raise VideoError(path, "not an image that can be read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, reason or "cannot be read") from None
