"""More videos of variable rate: other shapes, containers and codecs. Frames are taken by their own
times, and the same ones whatever the container."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.cases import doors
from tests.runner.tiers import full_only
from tests.unit.data.clips import copy, decoded
from tests.unit.data.video_files import write


def _recorded(seed: int) -> list[int]:
    """As a browser records: 15 to 70 ms from frame to frame, now and then a pause."""
    draw, at, found = random.Random(seed), 0, []
    for _ in range(60):
        found.append(at)
        at += draw.choice((15, 16, 17, 33, 34, 50, 70, 70, 400, 2500))
    return found


SHAPES: dict[str, list[int]] = {
    "a pause": [*range(0, 1000, 40), *range(61000, 62000, 40)],
    "two pauses": [*range(0, 400, 40), *range(9000, 9400, 40), *range(40000, 40400, 40)],
    "every seventh is dropped": [33 * k for k in range(90) if k % 7 != 3],
    "runs are dropped": [33 * k for k in range(150) if not 20 <= k % 50 < 35],
    "of 29.97, some are dropped": [round(k * 1001 / 30) for k in range(90) if k % 10 != 5],
    "a browser": _recorded(1),
    "another browser": _recorded(2),
    "one picture, then motion": [0, *range(30000, 32000, 50)],
    "motion, then one picture": [*range(0, 2000, 50), 45000],
    "slower and slower": [20 * k * k for k in range(40)],
    "a picture every 7.3 s": [7300 * k + (k % 2) * 900 for k in range(20)],
    "two rates": [*range(0, 2000, 20), *range(2000, 12000, 200)],
}
"""Milliseconds at which frames are shown."""
WAYS = {"h264": ("libx264", ("mp4", "mkv", "mov")), "vp9": ("libvpx-vp9", ("webm", "mkv", "mp4"))}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "shape",
    full_only(
        "tests/cases/test_more_times.py::test_frames_by_their_own_times",
        SHAPES,
        ["a pause", "every seventh is dropped", "a browser", "a picture every 7.3 s"],
    ),
)
def test_frames_by_their_own_times(tmp_path: Path, shape: str, way: str) -> None:
    codec, endings = WAYS[way]
    times = np.asarray(SHAPES[shape]) / 1000
    source = write(
        tmp_path / f"source.{endings[0]}", codec, len(times), width=32, height=32, rate=1000,
        time=lambda k: SHAPES[shape][k], options={"g": "10"},
    )  # fmt: skip
    paths = [source, *(copy(source, tmp_path / f"copy.{ending}") for ending in endings[1:])]
    told = doors.check_media(tmp_path, [path.name for path in paths])
    whole, _ = decoded(source)
    seen = set()
    for path in paths:
        found = told[path.name]
        assert found["frames"] == len(times)
        # From the first frame to the end of the last one, which lasts no longer than any other.
        assert times[-1] < found["seconds"] <= times[-1] + np.diff(times).max() + 0.002
        assert found["fps"] == pytest.approx(len(times) / found["seconds"])
        seen.add(found["seconds"])
    assert max(seen) - min(seen) <= 0.003
    for how in (("--video-fps", "1"), ("--video-fps", "0.25"), ("--video-frames", "6")):
        taken = []
        for number, path in enumerate(paths):
            listed, pictures = doors.frames(path, tmp_path / f"out{number}", *how)
            taken.append([entry["index"] for entry in listed])
            assert [e["time"] for e in listed] == pytest.approx(times[taken[-1]], abs=0.002)
            if number == 0:
                assert np.array_equal(pictures, whole[taken[-1]])
        assert taken[0] == taken[1] == taken[2], how
        if how[0] == "--video-fps":
            check_rate(times, times[taken[0]], float(how[1]))
        else:
            assert taken[0] == sorted(set(taken[0]))
            assert (len(taken[0]), taken[0][0], taken[0][-1]) == (6, 0, len(times) - 1)


def check_rate(times: np.ndarray, taken: np.ndarray, fps: float) -> None:
    """One each second is one each second, where there is one."""
    assert (np.diff(taken) > 0).all()
    assert taken[0] == times[0]
    assert len(taken) <= times[-1] * fps + 2
    for start in np.arange(0, times[-1], 0.5 / fps):
        within = (taken >= start) & (taken < start + 0.45 / fps)
        # A picture of its own, and where pictures rest before and after it one for each.
        assert within.sum() <= 3
    for time in times:
        # A second that has frames is not passed over.
        assert np.abs(taken - time).min() <= 1.5 / fps
    assert times[-1] - taken[-1] <= 1.5 / fps


RATES = {
    "24000/1001": Fraction(24000, 1001),
    "30000/1001": Fraction(30000, 1001),
    "60000/1001": Fraction(60000, 1001),
    "25": Fraction(25),
    "12.5": Fraction(25, 2),
    "1000/33": Fraction(1000, 33),
}


@pytest.mark.parametrize(
    "ending",
    full_only(
        "tests/cases/test_more_times.py::test_constant_rates",
        ["mp4", "mkv", "webm", "mov", "avi", "ts", "flv"],
        ["mp4", "mkv"],
    ),
)
@pytest.mark.parametrize("name", RATES)
def test_constant_rates(tmp_path: Path, name: str, ending: str) -> None:
    """Milliseconds of Matroska and FLV make no variable rate of them."""
    rate, count = RATES[name], 50
    codec = {"webm": "libvpx", "avi": "mpeg4"}.get(ending, "libx264")
    options = {"bf": "0"} if codec != "libvpx" else {}
    path = write(
        tmp_path / f"a.{ending}", codec, count, width=32, height=32, options=options,
        rate=rate,
    )  # fmt: skip
    found = doors.check_media(tmp_path, [path.name])[path.name]
    assert found["frames"] == count
    assert found["seconds"] == pytest.approx(count / float(rate), rel=2e-3)
    assert found["fps"] == pytest.approx(float(rate), rel=2e-3)
    listed, _ = doors.frames(path, tmp_path / "out", "--video-frames", "50")
    times = [entry["time"] for entry in listed]
    assert times == pytest.approx([k / float(rate) for k in range(count)], abs=0.003)
