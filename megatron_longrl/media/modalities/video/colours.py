"""Conversion of decoded frames to red, green and blue, bit for bit as OpenCV converts them.

OpenCV 5 gives a frame to FFmpeg's scaler with the tags that the frame has (matrix, range, primaries
and transfer function) and a target without tags, which the scaler completes: with the frame's own
primaries and transfer function where these are near BT.709's, and with BT.709's otherwise. OpenCV 4
ignored the tags, and took every video for BT.601.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from av.error import FFmpegError
from av.video.reformatter import (
    ColorPrimaries,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)

_NEAR_PRIMARIES = frozenset(
    (
        ColorPrimaries.UNSPECIFIED,
        ColorPrimaries.BT709,
        ColorPrimaries.BT470M,
        ColorPrimaries.BT470BG,
        ColorPrimaries.SMPTE170M,
        ColorPrimaries.SMPTE240M,
    )
)
"""Primaries that FFmpeg's scaler leaves as they are where the target has no tag."""
_NEAR_TRANSFERS = frozenset(
    (
        ColorTrc.UNSPECIFIED,
        ColorTrc.BT709,
        ColorTrc.GAMMA22,
        ColorTrc.GAMMA28,
        ColorTrc.SMPTE170M,
        ColorTrc.SMPTE240M,
        ColorTrc.IEC61966_2_4,
        ColorTrc.BT1361_ECG,
        ColorTrc.IEC61966_2_1,
        ColorTrc.BT2020_10,
        ColorTrc.BT2020_12,
    )
)
"""The same of transfer functions."""

_reformatters = threading.local()
"""The scaler of this thread: it keeps its tables as long as frames are of one kind, and those of
wide gamuts take seconds to build."""


def to_rgb(frame: Any) -> np.ndarray:
    """Convert a frame of PyAV's, as it is stored.

    Returns:
        uint8 [h, w, 3], red, green and blue; not contiguous.
    """
    if not hasattr(_reformatters, "one"):
        _reformatters.one = VideoReformatter()
    try:
        converted = _convert(frame, _targets(frame))
    except FFmpegError:
        # Tags that FFmpeg's scaler does not know, for which OpenCV gives what its memory held.
        untagged = dict.fromkeys(("src_colorspace", "dst_colorspace"), Colorspace.ITU601)
        converted = _convert(frame, untagged)
    pixels: np.ndarray = converted.to_ndarray()[..., ::-1]
    return pixels


def _convert(frame: Any, tags: dict[str, Any]) -> Any:
    # Of more than eight bits the scaler rounds otherwise on its way to rgb24 than to bgr24, which
    # is OpenCV's. Ranks share the cores of a machine: one thread.
    return _reformatters.one.reformat(
        frame, format="bgr24", interpolation=Interpolation.BICUBIC, threads=1, **tags
    )


def _targets(frame: Any) -> dict[str, Any]:
    """The tags of the target; none where PyAV, which ignores the frame's primaries and transfer
    function then, converts as OpenCV does."""
    primaries, transfer = frame.color_primaries, frame.color_trc
    if primaries in _NEAR_PRIMARIES and transfer in _NEAR_TRANSFERS:
        return {}
    if primaries not in _NEAR_PRIMARIES or primaries == ColorPrimaries.UNSPECIFIED:
        primaries = ColorPrimaries.BT709
    if transfer not in _NEAR_TRANSFERS or transfer == ColorTrc.UNSPECIFIED:
        transfer = ColorTrc.BT709
    return {"dst_color_primaries": int(primaries), "dst_color_trc": int(transfer)}
