"""More clips that were cut without encoding them again: other places, containers, codecs, groups of
pictures. Their frames are those that PyAV and OpenCV present, whichever of them are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_longrl.media.modalities.video.probe import probe
from tests.cases import doors
from tests.unit.data.clips import by_opencv, copy, decoded, ours
from tests.unit.data.video_files import write

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "no B-frames": ("mp4", {"codec": "libx264", "options": {"bf": "0", "g": "12"}}),
    "B-frames": (
        "mp4",
        {"codec": "libx264", "options": {"bf": "3", "g": "10", "x264-params": "scenecut=0"}},
    ),
    "B-pyramid": (
        "mov",
        {
            "codec": "libx264",
            "options": {"bf": "2", "g": "7", "x264-params": "scenecut=0:b-pyramid=normal"},
        },
    ),
    "one group": ("mp4", {"codec": "libx264", "options": {"bf": "3", "g": "250"}}),
    "open groups": (
        "mp4",
        {
            "codec": "libx264",
            "options": {"bf": "3", "g": "10", "x264-params": "open-gop=1:scenecut=0"},
        },
    ),
    "MPEG-2": ("mpg", {"codec": "mpeg2video", "rate": 25, "options": {"bf": "2", "g": "10"}}),
    "MPEG-1": ("mpg", {"codec": "mpeg1video", "rate": 25, "options": {"g": "7"}}),
    "MPEG-4": ("mp4", {"codec": "mpeg4", "options": {"bf": "2", "g": "10"}}),
    "VP8": ("webm", {"codec": "libvpx", "options": {"g": "10"}}),
    "VP9": ("webm", {"codec": "libvpx-vp9", "options": {"g": "10", "lag-in-frames": "16"}}),
}
"""Container, and how to encode 40 frames."""


def before(seconds: float, since: float = -9.0) -> dict[str, Any]:
    """Starts this long after the beginning; packets from ``since`` on stay, to be hidden."""
    return {"shift": seconds, "keep": lambda number, time, is_key: time > since}


def until(seconds: float) -> dict[str, Any]:
    return {"keep": lambda number, time, is_key: time < seconds}


def without(*numbers: int) -> dict[str, Any]:
    return {"keep": lambda number, time, is_key: number not in numbers}


CLIPS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "all before a cut": ("B-frames", "mp4", before(0.13)),
    "a cut just before a key frame": ("B-frames", "mov", before(0.97)),
    "a cut at a key frame": ("B-frames", "mkv", before(1.0)),
    "a cut in the third group": ("B-frames", "mp4", before(2.71)),
    "from the key frame before it": ("B-frames", "mp4", before(1.53, -0.54)),
    "the same in MPEG-TS": ("B-frames", "ts", before(1.53, -0.54)),
    "the same in FLV": ("B-frames", "flv", before(1.53, -0.54)),
    "pyramids": ("B-pyramid", "mov", before(1.11)),
    "pyramids in Matroska": ("B-pyramid", "mkv", before(0.4)),
    "one group, late": ("one group", "mp4", before(3.05)),
    "one group, its end": ("one group", "mkv", until(2.25)),
    "open groups from a key frame": ("open groups", "mp4", before(1.0, -1e-6)),
    "open groups in Matroska": ("open groups", "mkv", before(2.0, -1e-6)),
    "without B-frames": ("no B-frames", "mov", before(0.35)),
    "a beginning": ("no B-frames", "mkv", until(1.85)),
    "a hole": ("no B-frames", "mp4", without(12, 13, 14, 15)),
    "MPEG-2 whole": ("MPEG-2", "mpg", before(0.0)),
    "MPEG-2 in MPEG-TS": ("MPEG-2", "ts", before(0.5)),
    "MPEG-2 in Matroska": ("MPEG-2", "mkv", before(0.8, -0.3)),
    "MPEG-1 whole": ("MPEG-1", "mpg", before(0.0)),
    "MPEG-4 in MP4": ("MPEG-4", "mp4", before(0.75)),
    "MPEG-4 in AVI": ("MPEG-4", "avi", until(2.05)),
    "VP8": ("VP8", "webm", before(1.0, -1e-6)),
    "VP9": ("VP9", "webm", before(2.0, -1e-6)),
    "VP9 in MP4": ("VP9", "mp4", before(1.53, -0.54)),
    "VP9 in Matroska": ("VP9", "mkv", until(3.1)),
}
"""Source, container, cut."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("sources"), dict[str, Path]()

    def give(name: str) -> Path:
        if name not in made:
            ending, how = SOURCES[name]
            path = folder / f"{name.replace(' ', '_')}.{ending}"
            made[name] = write(path, frames=40, **{"rate": 10, **how})
        return made[name]

    return give


@pytest.mark.parametrize("name", CLIPS)
def test_clips(source: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    origin, ending, how = CLIPS[name]
    path = copy(source(origin), tmp_path / f"clip.{ending}", **how)
    expected, times = decoded(path)
    count = len(expected)
    assert count >= 5
    found = doors.check_media(tmp_path, [path.name])[path.name]
    assert (found["frames"], found["width"], found["height"]) == (count, 48, 48)
    assert found["fps"] == pytest.approx(count / found["seconds"])
    listed, pictures = doors.frames(path, tmp_path / "out", "--video-frames", "100")
    assert [entry["index"] for entry in listed] == list(range(count))
    assert np.array_equal(pictures, expected)
    if ending != "avi":  # which has no times
        told = [entry["time"] for entry in listed]
        assert told == pytest.approx([time - times[0] for time in times], abs=0.002)
    for numbers in ([count - 1], [count // 2], [0, count // 3], list(range(count - 1, -1, -5))):
        assert np.array_equal(ours(path, numbers), expected[numbers]), numbers
    assert by_opencv(path).shape == expected.shape


@pytest.mark.parametrize("shift", [0.5, 0.97, 1.0, 1.53, 2.04, 3.31])
@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_a_cut_begins_where_it_was_made(
    source: Callable[[str], Path], tmp_path: Path, ending: str, shift: float
) -> None:
    """Its frames are the last ones of the whole, from the one that is shown at the cut or the next
    one on."""
    whole, _ = decoded(source("B-frames"))
    path = copy(source("B-frames"), tmp_path / f"clip.{ending}", shift=shift)
    count = probe(path).num_frames
    assert count in (int(40 - 10 * shift), int(40 - 10 * shift) + 1)
    assert np.array_equal(ours(path), whole[-count:])


@pytest.mark.parametrize("alone", range(0, 40, 3))
@pytest.mark.parametrize("name", ["MPEG-1", "MPEG-2"])
def test_any_frame_of_a_program_stream(
    source: Callable[[str], Path], name: str, alone: int
) -> None:
    """The stream has several small frames behind one time."""
    expected, _ = decoded(source(name))
    assert np.array_equal(ours(source(name), [alone])[0], expected[alone])


@pytest.mark.parametrize("ending", ["m1v", "m2v"])
def test_a_stream_without_a_container(tmp_path: Path, ending: str) -> None:
    """Has the rate that it says."""
    codec = {"m1v": "mpeg1video", "m2v": "mpeg2video"}[ending]
    path = write(tmp_path / f"a.{ending}", codec, 20, rate=25, options={"g": "6", "bf": "0"})
    expected, _ = decoded(path)
    found = doors.check_media(tmp_path, [path.name])[path.name]
    assert (found["frames"], found["fps"]) == (20, pytest.approx(25.0))
    for numbers in (list(range(20)), [1], [19, 3]):
        assert np.array_equal(ours(path, numbers), expected[numbers])
