"""Frames of videos of many kinds against OpenCV's VideoCapture, to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from megatron_longrl.media.modalities.video.colours import to_rgb
from tests.runner.tiers import full_only
from tests.unit.data.clips import by_opencv, copy, decoded, ours
from tests.unit.data.video_files import draw_picture

BT601, BT709, BT2020, UNTAGGED, YCGCO = 6, 1, 9, 2, 8
TV, PC = ColorRange.MPEG, ColorRange.JPEG
HERE = "tests/parity/test_opencv_pixels.py"
QUIET = {"x265-params": "log-level=none"}


@dataclass(frozen=True)
class Clip:
    """What a file is made of."""

    codec: str
    pixels: str = "yuv420p"
    ending: str = "mkv"
    size: tuple[int, int] = (78, 62)
    matrix: int = UNTAGGED
    range: int = ColorRange.UNSPECIFIED
    primaries: int = ColorPrimaries.UNSPECIFIED
    transfer: int = ColorTrc.UNSPECIFIED
    rate: Fraction = Fraction(25)
    rotation: int = 0
    options: dict[str, str] = field(default_factory=dict, hash=False)
    is_variable: bool = False


CLIPS = {
    "h264": Clip("libx264", ending="mp4"),
    "h264 422": Clip("libx264", "yuv422p"),
    "h264 444": Clip("libx264", "yuv444p"),
    "h264 full range": Clip("libx264", "yuvj420p", "mp4", range=PC),
    "h264 10 bits": Clip("libx264", "yuv420p10le", "mp4"),
    "h264 422 10 bits": Clip("libx264", "yuv422p10le"),
    "h264 gray": Clip("libx264", "gray"),
    "h264 rgb": Clip("libx264rgb", "rgb24"),
    "h264 bt601": Clip("libx264", ending="mp4", matrix=BT601, range=TV),
    "h264 bt709": Clip("libx264", ending="mp4", matrix=BT709, range=TV, primaries=1, transfer=1),
    "h264 bt709 full range": Clip("libx264", ending="mp4", matrix=BT709, range=PC),
    "h264 bt2020 matrix": Clip("libx264", ending="mp4", matrix=BT2020, range=TV),
    "h264 10 bits bt709 full": Clip("libx264", "yuv420p10le", matrix=BT709, range=PC),
    "h264 turned by 90": Clip("libx264", ending="mp4", rotation=90),
    "h264 turned by 180": Clip("libx264", ending="mov", rotation=180),
    "h264 turned by 270": Clip("libx264", ending="mp4", rotation=270, matrix=BT709),
    "h264 29.97": Clip("libx264", ending="mp4", rate=Fraction(30000, 1001)),
    "h264 23.976": Clip("libx264", ending="mov", rate=Fraction(24000, 1001)),
    "h264 variable": Clip("libx264", ending="mp4", is_variable=True),
    "h264 odd size": Clip("libx264", "yuv444p", size=(33, 31)),
    "hevc": Clip("libx265", ending="mp4", options=QUIET),
    "hevc 10 bits bt709": Clip("libx265", "yuv420p10le", "mp4", matrix=BT709, options=QUIET),
    "hevc 422 full range": Clip("libx265", "yuv422p", range=PC, options=QUIET),
    "hevc gbrp": Clip("libx265", "gbrp", options=QUIET),
    "vp8": Clip("libvpx", ending="webm"),
    "vp9": Clip("libvpx-vp9", ending="webm"),
    "vp9 odd size": Clip("libvpx-vp9", ending="webm", size=(101, 49)),
    "vp9 444 bt709": Clip("libvpx-vp9", "yuv444p", "webm", matrix=BT709, range=TV),
    "vp9 440": Clip("libvpx-vp9", "yuv440p", "webm"),
    "vp9 full range": Clip("libvpx-vp9", ending="webm", matrix=BT601, range=PC),
    "av1": Clip("libsvtav1", ending="mp4", size=(80, 64)),
    "av1 10 bits": Clip("libsvtav1", "yuv420p10le", "mp4", size=(80, 64)),
    "mpeg4": Clip("mpeg4", ending="mp4"),
    "mpeg4 turned": Clip("mpeg4", ending="mp4", rotation=90),
    "mjpeg": Clip("mjpeg", "yuvj420p"),
    "mjpeg 422": Clip("mjpeg", "yuvj422p"),
    "mjpeg 444 odd size": Clip("mjpeg", "yuvj444p", size=(35, 33)),
    "ffv1 with alpha": Clip("ffv1", "yuva420p"),
    "ffv1 bgra": Clip("ffv1", "bgra"),
    "ffv1 16 bits gray": Clip("ffv1", "gray16le"),
    "ffv1 411": Clip("ffv1", "yuv411p"),
    "prores": Clip("prores_ks", "yuv422p10le", "mov"),
    "huffyuv": Clip("huffyuv", "yuv422p", "avi"),
    "uncompressed": Clip("rawvideo", "uyvy422", "nut"),
    "uncompressed nv12": Clip("rawvideo", "nv12", "nut"),
    "hevc wide gamut, PQ": Clip(
        "libx265", "yuv420p10le", "mp4", (78, 62), BT2020, TV, 9, 16, options=QUIET
    ),
    "h264 Display P3": Clip("libx264", "yuv420p", "mkv", (78, 62), BT709, TV, 12, 13),
    "ffv1 HLG": Clip("ffv1", "yuv444p10le", "mkv", (78, 62), BT2020, TV, 9, 18),
}
FIRST = (
    *("h264 bt709", "h264 10 bits bt709 full", "h264 turned by 90", "hevc 422 full range"),
    *("vp9 odd size", "vp9 full range", "mpeg4 turned", "mjpeg 444 odd size", "ffv1 with alpha"),
)
"""Run in the first tier: each deviation from OpenCV that was found fails one of them."""


def made(path: Path, clip: Clip) -> Path:
    """Write three frames."""
    width, height = clip.size
    source = path / f"source.{clip.ending}"
    with av.open(str(source), "w") as container:
        stream: Any = container.add_stream(clip.codec, rate=clip.rate, options=clip.options)
        stream.width, stream.height, stream.pix_fmt = width, height, clip.pixels
        context = stream.codec_context
        context.colorspace, context.color_range = clip.matrix, clip.range
        context.color_primaries, context.color_trc = clip.primaries, clip.transfer
        if clip.codec in ("libvpx-vp9", "libvpx", "libx264"):
            stream.bit_rate = 2_000_000
        for number in range(3):
            picture = draw_picture(number, height, width)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=clip.pixels)
            frame.colorspace, frame.color_range = clip.matrix, clip.range
            frame.color_primaries, frame.color_trc = clip.primaries, clip.transfer
            frame.pts = number * number if clip.is_variable else number
            frame.time_base = 1 / clip.rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if not clip.rotation:
        return source
    return copy(source, path / f"turned.{clip.ending}", rotation=clip.rotation)


@pytest.mark.parametrize("name", full_only(f"{HERE}::test_the_pixels_of_opencv", CLIPS, FIRST))
def test_the_pixels_of_opencv(name: str, tmp_path: Path) -> None:
    path = made(tmp_path, CLIPS[name])
    # OpenCV's wheel has no decoder for AV1: there PyAV decides, with the same conversion.
    theirs = decoded(path)[0] if name.startswith("av1") else by_opencv(path)
    assert len(theirs) == 3
    assert theirs.std() > 20
    assert np.array_equal(ours(path), theirs)


@pytest.mark.parametrize("matrix", [YCGCO, 14])
def test_tags_that_opencv_cannot_convert(matrix: int) -> None:
    """OpenCV hands out memory that it has not written to; here such a frame counts as untagged."""
    picture = av.VideoFrame.from_ndarray(draw_picture(0, 48, 64), format="rgb24")
    untagged = picture.reformat(format="yuv420p")
    untagged.colorspace, untagged.color_range = UNTAGGED, TV
    tagged = picture.reformat(format="yuv420p")
    tagged.colorspace, tagged.color_range, tagged.color_trc = matrix, TV, ColorTrc.LOG
    expected = to_rgb(untagged)
    assert np.array_equal(to_rgb(tagged), expected)
    assert np.abs(expected.astype(int) - draw_picture(0, 48, 64)).mean() < 25
