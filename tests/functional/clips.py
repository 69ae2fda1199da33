"""Films of one colour, to ask for it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, channel: int, frames: int) -> None:
    """A film of one colour, at ten frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[..., channel] = 60 + 5 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
