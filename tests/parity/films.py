"""Ten videos of odd sizes, rates and lengths, and their frames by PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

VIDEOS = [
    # width, height, frames, rate, jitter of the timestamps
    (64, 48, 8, 4, 0),
    (130, 74, 12, 25, 0),
    (74, 130, 5, 10, 0),
    (320, 240, 20, 30, 0),
    (242, 138, 9, 15, 0),
    (48, 48, 3, 1, 0),
    (400, 60, 6, 12, 0),
    (90, 92, 33, 24, 0),
    (64, 48, 12, 8, 3),
    (130, 74, 16, 10, 5),
]


def film(path: Path, width: int, height: int, frames: int, rate: int, jitter: int) -> Path:
    """Smooth pictures that move, at an even or a variable rate."""
    generator = np.random.default_rng(width + frames)
    coarse = generator.integers(0, 255, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    time = 0
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "10", "b": "0"}
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(coarse, format="rgb24")
            smooth = picture.reformat(width=width + 8, height=height, interpolation="BICUBIC")
            shifted = np.roll(smooth.to_ndarray(format="rgb24"), number, axis=1)[:, :width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shifted), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate * 4)
            time += 4 + int(generator.integers(0, jitter + 1))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(path: Path) -> list[np.ndarray[Any, Any]]:
    """Each [H, W, 3]. Colours are not a processor's concern: they are OpenCV's."""
    with av.open(str(path)) as container:
        return [
            frame.reformat(format="bgr24", interpolation=Interpolation.BICUBIC).to_ndarray()[
                ..., ::-1
            ]
            for frame in container.decode(video=0)
        ]
