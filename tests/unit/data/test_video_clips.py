"""Clips that were cut or written with frames left out: the frames are those that PyAV and OpenCV
present, and a file that breaks off is still found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video import probe as video_probe
from megatron_longrl.media.modalities.video.probe import probe, scan
from tests.unit.data.clips import by_opencv, copy, decoded, edit, ours

CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "h264": (
        "mp4",
        {"codec": "libx264", "options": {"bf": "3", "g": "10", "x264-params": "scenecut=0"}},
    ),
    "open_gop": (
        "mp4",
        {
            "codec": "libx264",
            "options": {"bf": "3", "g": "10", "x264-params": "open-gop=1:scenecut=0"},
        },
    ),
    "hevc": (
        "mp4",
        {
            "codec": "libx265",
            "options": {"x265-params": "keyint=10:bframes=3:open-gop=1:log-level=none"},
            "width": 128,  # the encoder writes beyond its memory where frames are smaller
            "height": 128,
        },
    ),
    "mpeg4": ("mp4", {"codec": "mpeg4", "options": {"bf": "2", "g": "10"}}),
    "vp9": ("mp4", {"codec": "libvpx-vp9", "options": {"g": "10"}}),
    "mjpeg": ("mov", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
}
"""Container, and how to encode."""
NEGATIVE: dict[str, Any] = {"shift": 0.53}
FROM_A_KEY_FRAME: dict[str, Any] = {"shift": 1.0, "keep": lambda number, time, is_key: time > -1e-6}
FROM_BETWEEN: dict[str, Any] = {"keep": lambda number, time, is_key: number >= 5}
SOME_LOST: dict[str, Any] = {"keep": lambda number, time, is_key: number % 6 != 4}
BEGINNING: dict[str, Any] = {"keep": lambda number, time, is_key: time < 2.05}
CLIPS: list[tuple[str, str, dict[str, Any]]] = [
    ("h264", "mp4", NEGATIVE),
    ("h264", "mov", NEGATIVE),
    ("h264", "mkv", NEGATIVE),
    ("h264", "ts", FROM_BETWEEN),
    ("h264", "mp4", FROM_BETWEEN),
    ("h264", "flv", SOME_LOST),
    ("h264", "mp4", SOME_LOST),
    ("open_gop", "mp4", NEGATIVE),
    ("open_gop", "mov", FROM_A_KEY_FRAME),
    ("open_gop", "mkv", FROM_A_KEY_FRAME),
    ("hevc", "mp4", NEGATIVE),
    ("hevc", "mkv", FROM_A_KEY_FRAME),
    ("hevc", "mp4", SOME_LOST),
    ("mpeg4", "mov", NEGATIVE),
    ("mpeg4", "avi", BEGINNING),
    ("mpeg4", "mp4", SOME_LOST),
    ("vp9", "mp4", NEGATIVE),
    ("vp9", "webm", SOME_LOST),
    ("mjpeg", "mov", NEGATIVE),
    ("mjpeg", "avi", FROM_BETWEEN),
]
HOW = {id(NEGATIVE): "negative", id(FROM_A_KEY_FRAME): "from_a_key_frame"} | {
    id(FROM_BETWEEN): "from_between", id(SOME_LOST): "some_lost", id(BEGINNING): "beginning"
}  # fmt: skip

Sources = dict[str, Path]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    return {
        name: write_video(folder / f"{name}.{ending}", frames=40, rate=10, **how)
        for name, (ending, how) in CODECS.items()
    }


def assert_presented(path: Path) -> np.ndarray:
    """As PyAV presents it, in order, backwards and in number as OpenCV; returns the frames."""
    frames, _ = decoded(path)
    assert probe(path).num_frames == len(frames)
    assert np.array_equal(ours(path), frames)
    backwards = list(range(len(frames) - 1, -1, -7))
    assert np.array_equal(ours(path, backwards), frames[backwards])
    assert np.array_equal(by_opencv(path), frames)
    return frames


@pytest.mark.parametrize(
    ("codec", "ending", "how"), CLIPS, ids=[f"{c}-{e}-{HOW[id(h)]}" for c, e, h in CLIPS]
)
def test_frames_are_those_that_are_presented(
    sources: Sources, tmp_path: Path, codec: str, ending: str, how: dict[str, Any]
) -> None:
    path = copy(sources[codec], tmp_path / f"clip.{ending}", **how)
    assert len(assert_presented(path)) >= 10


@pytest.mark.parametrize(
    ("starts", "lasts", "frames"),
    [(0, 4000, 40), (0, 1500, 15), (5000, 2000, 20), (12345, 1000, 10), (0, 100, 1)],
)
def test_edit_lists(sources: Sources, tmp_path: Path, starts: int, lasts: int, frames: int) -> None:
    """That begin late, end early, or both."""
    path = copy(sources["mjpeg"], tmp_path / "clip.mov", shift=0.0)
    if b"elst" not in path.read_bytes():
        path = copy(sources["h264"], tmp_path / "clip.mp4")
    edit(path, starts, lasts)
    found = assert_presented(path)
    assert abs(len(found) - frames) <= 1


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg", "ffv1"])
@pytest.mark.parametrize("lost", [{4}, {1, 2, 3}, {38}, {10, 20, 21}])
def test_frames_that_a_capture_has_dropped(
    tmp_path: Path, write_video: Callable[..., Path], codec: str, lost: set[int]
) -> None:
    """An AVI holds an empty chunk for each."""
    slots = [slot for slot in range(40) if slot not in lost]
    formats = {"mjpeg": "yuvj420p"}
    path = write_video(
        tmp_path / "capture.avi", codec, len(slots), rate=10, time=lambda k: slots[k],
        pixel_format=formats.get(codec, "yuv420p"),
    )  # fmt: skip
    assert len(assert_presented(path)) == len(slots)
    info = probe(path)
    assert info.duration_seconds == pytest.approx(4.0)
    assert info.times is not None
    assert info.times.tolist() == [100 * slot for slot in slots]


@pytest.mark.parametrize(("codec", "b_frames"), [("libx264", 0), ("mpeg4", 0), ("mpeg4", 2)])
def test_when_the_frames_of_a_capture_are_shown(
    tmp_path: Path, write_video: Callable[..., Path], codec: str, b_frames: int
) -> None:
    """AVI has no times but those of decoding; FFmpeg's for H.264 come one slot late."""
    slots = [slot for slot in range(40) if slot not in (4, 17)]
    path = write_video(
        tmp_path / "capture.avi", codec, len(slots), rate=10, time=lambda k: slots[k],
        options={"bf": str(b_frames)},
    )  # fmt: skip
    assert len(assert_presented(path)) == len(slots)
    info = probe(path)
    assert info.times is not None
    assert info.times.tolist() == [100 * slot for slot in slots]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "nut", "flv"])
def test_what_lies_before_the_first_key_frame_is_passed_over(
    sources: Sources, tmp_path: Path, ending: str
) -> None:
    """VP9's decoder refuses it, and with it PyAV's whole loop; the next key frame is number 10."""
    whole, _ = decoded(sources["vp9"])
    path = copy(sources["vp9"], tmp_path / f"clip.{ending}", **FROM_BETWEEN)
    assert probe(path).num_frames == 30
    assert np.array_equal(ours(path), whole[10:])


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}], ids=["plain", "faststart"])
@pytest.mark.parametrize(("codec", "ending"), [("h264", "mp4"), ("open_gop", "mov")])
def test_a_cut_clip_that_breaks_off(
    sources: Sources, tmp_path: Path, codec: str, ending: str, options: dict[str, str], share: float
) -> None:
    path = copy(sources[codec], tmp_path / f"clip.{ending}", options=options, **NEGATIVE)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError, match=f"{path.name}: (the file is truncated|not a video)"):
        probe(path)


def test_a_table_that_points_behind_the_end(sources: Sources, tmp_path: Path) -> None:
    """The box of the data says that it lasts to the end of the file, wherever that is."""
    options = {"movflags": "faststart"}
    path = copy(sources["h264"], tmp_path / "clip.mp4", options=options, **NEGATIVE)
    data = bytearray(path.read_bytes())
    at = data.find(b"mdat") - 4
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    assert probe(path).num_frames == len(decoded(path)[0])
    path.write_bytes(data[:-200])
    with pytest.raises(MediaError, match="the file is truncated"):
        probe(path)


def test_an_avi_that_breaks_off(sources: Sources, tmp_path: Path) -> None:
    path = copy(sources["mjpeg"], tmp_path / "clip.avi")
    data = path.read_bytes()
    for share in (0.5, 0.9, 0.999):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(MediaError, match="the file is truncated"):
            probe(path)
    # A program that was stopped has not written the length of the whole.
    path.write_bytes(data[:4] + bytes(4) + data[8 : len(data) // 2])
    with pytest.raises(MediaError, match="the file is truncated"):
        probe(path)


def test_a_long_file_is_not_decoded_to_count_its_frames(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that its decoder leaves out is then the one before it, which a player shows."""
    path = copy(sources["mpeg4"], tmp_path / "clip.mp4", **SOME_LOST)
    frames, times = decoded(path)
    monkeypatch.setattr(video_probe, "_MOST_COUNTED", 10)
    found = scan(path)
    assert found.info.num_frames > len(frames)
    with av.open(str(path)) as container:
        tick = float(container.streams.video[0].time_base or 0)
    starts = np.asarray(found.timestamps[5:20]) * tick
    expected = np.searchsorted(times, starts + 1e-4) - 1
    assert len(set(expected)) < 15
    assert np.array_equal(ours(path, list(range(5, 20))), frames[expected])
