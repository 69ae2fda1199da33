"""Draws small videos and writes them as real files."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def draw_picture(index: int, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3]: coloured blocks that move, different for every index."""
    blocks = np.random.default_rng(7).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3))
    image = np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)[:height, :width]
    image = np.roll(image, 2 * index, axis=1)
    image[: height // 4] = (index * 37 % 256, index * 91 % 256, index * 53 % 256)
    return image


def write(
    path: Path,
    codec: str,
    frames: int = 24,
    *,
    width: int = 48,
    height: int = 48,
    rate: int | Fraction = 6,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    mux_options: dict[str, str] | None = None,
    time: Callable[[int], int] = lambda index: index,
) -> Path:
    """Write a video; frame k is shown at ``time(k)`` / rate seconds."""
    with av.open(str(path), "w", options=mux_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.options = options or {}
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(draw_picture(index, height, width), format="rgb24")
            frame.pts, frame.time_base = time(index), 1 / Fraction(rate)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
