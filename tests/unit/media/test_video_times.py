"""Frames by their own times: the same whatever the container, one a second where one is asked for;
and as ever where the rate is constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_longrl.config import Config
from megatron_longrl.media.modalities.video.probe import probe
from megatron_longrl.media.modalities.video.spec import sample_frame_indices
from megatron_longrl.media.modalities.video.times import rate_and_times, sample, seconds_at
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.models.qwen_vl.layout import Qwen3Layout, Qwen25Layout
from megatron_longrl.models.vila.layout import VilaLayout
from tests.unit.data.clips import copy, decoded

# Times in tenths of a second.
SCREEN = [*range(20), *range(70, 521, 50)]
"""20 frames in two seconds, then one every five."""
SLIDES = [0, 200, 210, 1000, 3000]
BURST = [*range(10), 100, *range(200, 210)]
SLOWER = [k * (k + 1) // 2 for k in range(25)]
NIGHT = [0, 1, 2, 3, *range(3000, 3010)]
TIMES = {"screen": SCREEN, "slides": SLIDES, "burst": BURST, "slower": SLOWER, "night": NIGHT}


def info_of(milliseconds: Sequence[int]) -> VideoInfo:
    times = np.asarray(milliseconds, dtype=np.uint32)
    seconds = float(times[-1]) / 1000 + 0.1
    return VideoInfo(len(times), len(times) / seconds, 48, 48, "h264", seconds, times=times)


class _Tokenizer:
    media_id = 0

    def id_of(self, symbol: str) -> int:
        return 0


def layout_of(family: str) -> Any:
    config = Config.of(
        {
            "model_family": family,
            "num_layers": 1,
            "hidden_size": 8,
            "ffn_hidden_size": 8,
            "num_attention_heads": 1,
            "seq_length": 64,
            "vision_patch_size": 16,
            "vision_temporal_patch_size": 1 if family == "vila" else 2,
        }
    )
    kinds: dict[str, Any] = {
        "vila": VilaLayout, "qwen2_5_vl": Qwen25Layout, "qwen3_vl": Qwen3Layout
    }  # fmt: skip
    return kinds[family](config.family, _Tokenizer())


@pytest.mark.parametrize("endings", [("mp4", "mkv"), ("mov", "nut"), ("mp4", "ts"), ("mkv", "flv")])
@pytest.mark.parametrize("name", TIMES)
def test_the_same_frames_in_every_container(
    tmp_path: Path, write_video: Callable[..., Path], name: str, endings: tuple[str, str]
) -> None:
    times = TIMES[name]
    path = write_video(
        tmp_path / "source.mp4", "libx264", len(times), rate=10, time=lambda k: times[k]
    )
    infos = [probe(copy(path, tmp_path / f"copy.{ending}")) for ending in endings]
    for info in infos:
        found = [seconds_at(info, index) for index in range(info.num_frames)]
        assert found == pytest.approx([(t - times[0]) / 10 for t in times], abs=0.002)
    for fps, most in ((1.0, None), (1.0, 64), (0.2, None), (2.0, 8), (None, 8), (None, 3)):
        first, second = (sample_frame_indices(info, most, fps) for info in infos)
        assert first == second, (fps, most)
        assert len(first) <= (most or len(times))


@pytest.mark.parametrize("family", ["vila", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("name", TIMES)
def test_one_frame_a_second(name: str, family: str) -> None:
    """No second has two, none goes without that has one, nor does any frame stand twice."""
    times = np.asarray(TIMES[name]) / 10
    found = list(dict.fromkeys(
        layout_of(family).frame_indices(info_of([100 * t for t in TIMES[name]]), None, 1.0)
    ))  # fmt: skip
    assert found == sorted(set(found))
    taken = times[found]
    assert taken[0] == 0
    assert taken[-1] >= times[-1] - 1
    assert len(taken) <= times[-1] + 4
    for second in np.arange(0.5, times[-1]):
        around = np.abs(times - second) <= 0.5
        assert np.sum(np.abs(taken - second) <= 0.25) <= 1
        if around.any():
            assert np.abs(taken - second).min() <= 1.6, second


def test_a_screen_recording() -> None:
    """As it was first seen: all 30 frames in one container, 3 in another one."""
    expected = (0, 10, *range(19, 30))
    assert sample_frame_indices(info_of([100 * t for t in SCREEN]), 64, 1.0) == expected


@pytest.mark.parametrize("most", [1, 2, 5, 13, 29, 30, 31])
def test_frames_spread_over_time(most: int) -> None:
    """Exactly as many as are asked for, if there are as many, each near its place in time."""
    found = sample_frame_indices(info_of([100 * t for t in SCREEN]), most, None)
    assert len(set(found)) == min(most, 30)
    assert list(found) == sorted(found)
    if most == 5:  # places at 0, 13, 26, 39 and 52 seconds
        assert [SCREEN[index] / 10 for index in found] == [0.0, 12.0, 27.0, 37.0, 52.0]


@pytest.mark.parametrize("family", ["vila", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("fps", [None, 0.5, 1.0, 7.0])
@pytest.mark.parametrize("most", [None, 4, 9, 16])
def test_units_are_whole(family: str, fps: float | None, most: int | None) -> None:
    """A last frame may stand twice, to fill its unit; no more frames than are asked for."""
    for times in TIMES.values():
        found = layout_of(family).frame_indices(info_of([100 * t for t in times]), most, fps)
        unit = 1 if family == "vila" else 2
        assert len(found) % unit == 0
        rounded = most + most % 2 if most else len(times)
        assert len(set(found)) <= min(rounded, len(times))


def test_labels_tell_the_true_time() -> None:
    layout, info = layout_of("qwen3_vl"), info_of([100 * t for t in SCREEN])
    indices = layout.frame_indices(info, 64, 1.0)
    texts = [
        p
        for p in layout.parts(info, indices, layout.preprocess_spec(info, 13))
        if isinstance(p, str)
    ]
    labels = [float(text[1:].split()[0]) for text in texts if text.startswith("<") and " s" in text]
    times = [SCREEN[index] / 10 for index in indices]
    expected = [(a + b) / 2 for a, b in zip(times[::2], times[1::2], strict=True)]
    assert labels == pytest.approx(expected, abs=0.051)


CONSTANT: dict[str, tuple[Fraction, list[int], Sequence[float]]] = {
    "milliseconds": (Fraction(1, 1000), [round(k * 1001 / 30) for k in range(900)], (29.97,)),
    "phone": (Fraction(1, 600), [20 * k + (k % 3 == 1) for k in range(300)], (30.0, 30.0)),
    "late start": (Fraction(1, 90000), [126000 + 3600 * k for k in range(100)], (25.0,)),
    "negative start": (Fraction(1, 10), list(range(-5, 20)), (10.0,)),
    "header tells another": (Fraction(1, 1000), [100 * k for k in range(50)], (23.0, 10.0)),
    "header tells nothing": (Fraction(1, 1000), [100 * k for k in range(50)], (0.0, 0.0)),
    "fast": (Fraction(1, 240), list(range(500)), (240.0,)),
    "one frame": (Fraction(1, 10), [7], (10.0,)),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constant_rates(name: str) -> None:
    tick, stamps, rates = CONSTANT[name]
    rate, times = rate_and_times(stamps, tick, rates)
    assert times is None
    told = {"header tells another": 10.0, "header tells nothing": 10.0}.get(name, rates[0])
    assert rate == pytest.approx(told, rel=1e-9 if told == rates[0] else 1e-6)


VARIABLE: dict[str, tuple[Fraction, list[int], Sequence[float]]] = {
    "one frame is gone": (Fraction(1, 10), [0, 1, 2, 4, 5, 6, 7, 8, 9], (10.0,)),
    "half the rate later": (Fraction(1, 30), [*range(30), *range(30, 90, 2)], (30.0,)),
    "jitter": (Fraction(1, 1000), [33 * k + (k % 4) * 5 for k in range(100)], (30.0,)),
    "a pause": (Fraction(1, 25), [*range(50), *range(100, 150)], (25.0, 25.0)),
    "two frames at once": (Fraction(1, 1000), [0, 40, 40, 80, 120], (25.0,)),
    "drift": (Fraction(1, 1000), [k * 40 + k * k // 50 for k in range(200)], (25.0,)),
}


@pytest.mark.parametrize("name", VARIABLE)
def test_variable_rates(name: str) -> None:
    tick, stamps, rates = VARIABLE[name]
    _, times = rate_and_times(stamps, tick, rates)
    assert times is not None
    assert times.tolist() == [round((s - stamps[0]) * tick * 1000) for s in stamps]


def test_broken_timestamps_tell_nothing() -> None:
    stamps = [0, 40, 80, 10**15]
    assert rate_and_times(stamps, Fraction(1, 1000), (25.0,)) == (25.0, None)


@pytest.mark.parametrize("formula_sees", ["frames", "milliseconds"])
def test_a_constant_rate_is_left_to_the_formula(formula_sees: str) -> None:
    seen = []

    def formula(count: int, rate: float, most: int | None, fps: float | None) -> list[int]:
        seen.append((count, rate, most, fps))
        return [0]

    if formula_sees == "frames":
        sample(VideoInfo(50, 12.5, 8, 8, "vp9", 4.0), 7, 2.0, formula)
        assert seen == [(50, 12.5, 7, 2.0)]
    else:
        sample(info_of([0, 100, 5000]), 7, 2.0, formula)
        assert seen[0][:2] == (7500, 1000.0)


def test_seconds_and_rate_of_a_probe(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    """Frames divided by the time from the first frame to the end of the last one."""
    path = write_video(
        tmp_path / "a.mp4", "libx264", 30, rate=10, time=lambda k: SCREEN[k], options={"bf": "0"}
    )
    info = probe(path)
    assert info.num_frames == 30
    assert 52.0 < info.duration_seconds <= 57.0
    assert info.fps == pytest.approx(30 / info.duration_seconds)
    late = probe(copy(path, tmp_path / "late.ts", shift=-3.0))
    _, times = decoded(tmp_path / "late.ts")
    assert times[0] >= 3
    assert late.duration_seconds == pytest.approx(info.duration_seconds, abs=5.0)


def test_many_rates_stay_as_the_header_tells_them(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    for rate in (1, 5, 24, 25, 30, 60):
        for ending in ("mp4", "mkv", "avi", "mov"):
            path = write_video(tmp_path / f"{rate}.{ending}", "mpeg4", 20, rate=rate)
            info = probe(path)
            assert (info.fps, info.times) == (rate, None), path
            assert info.duration_seconds == pytest.approx(20 / rate)
