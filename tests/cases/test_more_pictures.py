"""More videos that are turned or mirrored, of odd sizes, and whose containers tell another size
than the stream: the stream's picture, upright, as OpenCV reads it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.cases import doors
from tests.runner.tiers import full_only
from tests.unit.data.clips import by_opencv, copy, decoded, ours
from tests.unit.data.video_files import write

SIZES: dict[str, tuple[str, str, str, tuple[int, int]]] = {
    "h264": ("libx264", "mp4", "yuv420p", (64, 48)),
    "h264 in MOV": ("libx264", "mov", "yuv420p", (96, 32)),
    "h264 of an odd height": ("libx264", "mp4", "yuv444p", (64, 35)),
    "VP9 of odd sizes": ("libvpx-vp9", "mp4", "yuv420p", (47, 33)),
    "VP9 in WebM": ("libvpx-vp9", "webm", "yuv420p", (65, 64)),
    "VP8 of odd sizes": ("libvpx", "mkv", "yuv420p", (35, 63)),
    "JPEG of odd sizes": ("mjpeg", "mov", "yuvj420p", (51, 37)),
    "MPEG-4": ("mpeg4", "mp4", "yuv420p", (48, 80)),
}
"""Encoder, container, format, width and height."""


def assert_given(path: Path, expected: np.ndarray) -> None:
    """Every door gives the expected pixels."""
    count, height, width = expected.shape[:3]
    found = doors.check_media(path.parent, [path.name])[path.name]
    assert (found["frames"], found["width"], found["height"]) == (count, width, height)
    _, pictures = doors.frames(path, path.parent / "out", "--video-frames", "99")
    assert np.array_equal(pictures, expected)
    assert np.array_equal(ours(path), expected)


def assert_upright(path: Path, expected: np.ndarray) -> None:
    """Every door gives the expected pixels, which are those that OpenCV turns."""
    assert_given(path, expected)
    assert np.array_equal(by_opencv(path), expected)


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("name", SIZES)
def test_turned(tmp_path: Path, name: str, degrees: int) -> None:
    codec, ending, pixel_format, (width, height) = SIZES[name]
    source = write(
        tmp_path / f"source.{ending}", codec, 5, width=width, height=height,
        pixel_format=pixel_format,
    )  # fmt: skip
    stored, _ = decoded(source)
    assert stored.shape[1:3] == (height, width)
    path = copy(source, tmp_path / f"turned.{ending}", rotation=degrees)
    assert_upright(path, np.rot90(stored, degrees // 90, axes=(1, 2)))


MIRRORED = {
    "left to right": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "along the diagonal": (0, 1, 1, 0),
    "along the other diagonal": (0, -1, -1, 0),
    "not at all": (1, 0, 0, 1),
    "half a turn": (-1, 0, 0, -1),
}
"""a, b, c, d of the matrix of the track."""


@pytest.mark.parametrize("ending", ["mp4", "mov"])
@pytest.mark.parametrize("name", MIRRORED)
def test_mirrored(tmp_path: Path, name: str, ending: str) -> None:
    """As front cameras and editors write it; turned as OpenCV turns it."""
    cv2 = pytest.importorskip("cv2")
    path = write(tmp_path / f"a.{ending}", "libx264", 5, width=64, height=48)
    stored, _ = decoded(path)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in MIRRORED[name])
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert cv2.VideoCapture(str(path)).isOpened()
    theirs = by_opencv(path)
    expected = min(
        (np.rot90(stored, turns, axes=(1, 2)) for turns in range(4)),
        key=lambda frames: (
            np.abs(frames.astype(int) - theirs).mean() if frames.shape == theirs.shape else 999
        ),
    )
    assert_upright(path, expected)


def _matroska(data: bytearray, size: tuple[int, int], says: tuple[int, int]) -> None:
    for element, stored, said in ((0xB0, size[0], says[0]), (0xBA, size[1], says[1])):
        data[data.index(bytes([element, 0x81, stored])) + 2] = said


def _sample_entry(data: bytearray, size: tuple[int, int], says: tuple[int, int]) -> None:
    """Change the size in an MP4 or MOV, in the codec's description and in the track's header."""
    at = data.index(b"stsd") + 12 + 32
    assert struct.unpack_from(">HH", data, at) == size
    struct.pack_into(">HH", data, at, *says)
    struct.pack_into(">II", data, data.index(b"tkhd") + 4 + 76, says[0] << 16, says[1] << 16)


def _avi(data: bytearray, size: tuple[int, int], says: tuple[int, int]) -> None:
    at = data.index(b"strf") + 8 + 4
    assert struct.unpack_from("<ii", data, at) == size
    struct.pack_into("<ii", data, at, *says)


CONTAINERS = {
    "VP9 in WebM": ("libvpx-vp9", "webm", _matroska),
    "VP8 in WebM": ("libvpx", "webm", _matroska),
    "h264 in Matroska": ("libx264", "mkv", _matroska),
    "MPEG-4 in Matroska": ("mpeg4", "mkv", _matroska),
    "VP9 in MP4": ("libvpx-vp9", "mp4", _sample_entry),
    "h264 in MP4": ("libx264", "mp4", _sample_entry),
    "h264 in MOV": ("libx264", "mov", _sample_entry),
    "JPEG in MOV": ("mjpeg", "mov", _sample_entry),
    "JPEG in AVI": ("mjpeg", "avi", _avi),
    "MPEG-4 in AVI": ("mpeg4", "avi", _avi),
}


@pytest.mark.parametrize(
    "says",
    full_only(
        "tests/cases/test_more_pictures.py::test_another_size",
        [(80, 48), (64, 60), (40, 40), (48, 64), (100, 90)],
        [(80, 48)],
    ),
)
@pytest.mark.parametrize("name", CONTAINERS)
def test_another_size(tmp_path: Path, name: str, says: tuple[int, int]) -> None:
    codec, ending, change = CONTAINERS[name]
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write(tmp_path / f"a.{ending}", codec, 5, width=64, height=48, pixel_format=pixel_format)
    expected, _ = decoded(path)
    data = bytearray(path.read_bytes())
    change(data, (64, 48), says)
    path.write_bytes(data)
    if codec == "mjpeg" and says[1] >= 90:
        pytest.skip("FFmpeg takes much lower pictures for half of an interlaced frame")
    assert_given(path, expected)  # OpenCV scales some to the size that the container tells
