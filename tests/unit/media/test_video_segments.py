"""Frames from a piece of a file are those of the whole file, and no others are decoded."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.modalities.video import dali as video_dali
from megatron_longrl.media.modalities.video import decode as video_module
from megatron_longrl.media.modalities.video.probe import scan
from megatron_longrl.media.modalities.video.segments import plan_segments
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec

FILES: dict[str, dict[str, Any]] = {
    "short_gops.webm": {"codec": "libvpx-vp9", "options": {"g": "16"}},
    "one_gop.webm": {"codec": "libvpx-vp9", "options": {"g": "1000"}},
    "hidden_references.webm": {
        "codec": "libvpx-vp9",
        "options": {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"},
    },
    "in_mp4.mp4": {"codec": "libvpx-vp9", "options": {"g": "16"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "16"}},
    "variable_rate.webm": {
        "codec": "libvpx-vp9",
        "options": {"g": "16"},
        "time": lambda k: k * (k + 3),
    },
    "mjpeg.mkv": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
}
FRAMES = 100
VIEW = PreprocessSpec(32, 32, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    for name, options in FILES.items():
        write_video(folder / name, frames=FRAMES, **options)
    return folder


def spec_of(path: Path) -> VideoSpec:
    return VideoSpec(str(path), content_hash(path), tuple(range(FRAMES)), VIEW)


pytestmark = pytest.mark.usefixtures("by_dali")


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_the_whole_file(folder: Path, name: str) -> None:
    spec = spec_of(folder / name)
    every = spec.frames()
    generator = random.Random(0)
    requests = [range(50, 100), range(33, 34), [99], [0, 99], range(16, 32), [70, 3, 70, 41]]
    requests += [generator.sample(range(FRAMES), 10) for _ in range(5)]
    for positions in requests:
        assert torch.equal(spec.frames(positions), every[list(positions)]), positions


def fed_frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes how many frames are in each file that DALI is given."""
    fed: list[int] = []
    decode = video_dali.decode

    def noting(videos: Any) -> Any:
        for encoded, _ in videos:
            with av.open(io.BytesIO(encoded.tobytes())) as container:
                fed.append(sum(packet.size > 0 for packet in container.demux(video=0)))
        return decode(videos)

    monkeypatch.setattr(video_dali, "decode", noting)
    return fed


def test_a_rank_decodes_from_the_key_frame_before_its_frames(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(folder / "short_gops.webm")
    fed = fed_frames(monkeypatch)
    spec.frames(range(50, 100))  # key frames at 0, 16, 32, 48, …
    assert fed == [52]


def test_nothing_is_decoded_between_distant_frames(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(folder / "short_gops.webm")
    fed = fed_frames(monkeypatch)
    spec.frames([2, 50, 51, 97])
    assert fed == [3, 4, 2]


def test_frames_that_are_decoded_at_different_times_need_not_be_read_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(folder / "short_gops.webm")
    fed = fed_frames(monkeypatch)
    monkeypatch.setattr(video_module, "_RUN_BYTES", 32 * 48 * 48 * 3)
    spec.frames()
    assert fed == [32, 32, 32, 4]


def test_close_frames_make_one_piece(folder: Path) -> None:
    found = scan(folder / "short_gops.webm")
    assert [(p.first, p.wanted) for p in plan_segments(found, [30, 33])] == [(16, (30, 33))]
    assert [(p.first, p.wanted) for p in plan_segments(found, [17, 33])] == [
        (16, (17,)),
        (32, (33,)),
    ]
