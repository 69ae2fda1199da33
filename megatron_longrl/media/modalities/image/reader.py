"""Images, as Pillow reads them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from megatron_longrl.media.content_hash import identity
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.visual.info import MOST_PIXELS, VideoInfo

_NOT_OPENED = frozenset({"EPS", "WMF", "GRIB", "BUFR", "HDF5", "FPX", "MIC", "MPEG"})
"""Pillow's formats that another program has to draw (Ghostscript runs what an EPS file says), or
that hold no picture that Pillow can read by itself."""

# Of damaged files, mostly; what is wrong with one is told by its error.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def probe_image(path: str | Path, *, upright: bool = True) -> VideoInfo:
    """Return the properties of an image file, as a video of one frame and no duration.

    Args:
        upright: turn it as its EXIF orientation says.

    Raises:
        MediaError: not there, not a regular file, not an image, or too large.
    """
    with _opened(path) as image:
        width, height = image.size
        # Pillow itself turns TIFF, and tells the size of the turned image.
        turns = upright and image.format != "TIFF"
        if turns and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:
            width, height = height, width
        return VideoInfo(1, 0.0, width, height, (image.format or "").lower(), 0.0, is_image=True)


def read_image(path: str | Path, *, upright: bool = True) -> np.ndarray:
    """Return an image's pixels in red, green and blue, uint8 [h, w, 3].

    Args:
        upright: turn it as its EXIF orientation says.

    Raises:
        MediaError: as of :func:`probe_image`; or truncated, or damaged.
    """
    with _opened(path) as image:
        turned = ImageOps.exif_transpose(image) if upright else image
        return np.array(turned.convert("RGB"))


_ORIENTATION = 0x0112
_ON_ITS_SIDE = range(5, 9)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_OPENED)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    identity(path)
    try:
        with Image.open(path, formats=_formats()) as image:
            width, height = image.size
            if not 0 < width * height <= MOST_PIXELS:
                raise MediaError(path, f"images of {width} x {height} pixels are not read")
            yield image
    except UnidentifiedImageError:
        raise MediaError(path, "not an image of a format that is read") from None
    except Image.DecompressionBombError:
        raise MediaError(path, f"images of more than {MOST_PIXELS} pixels are not read") from None
    except Exception as error:  # plugins raise what they like on files that nobody expected
        raise MediaError.of(path, error) from None
