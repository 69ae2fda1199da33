"""Videos: exactly the frames asked for, the same pixels by both decoders, errors in one line."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video import dali as video_dali
from megatron_longrl.media.modalities.video import decode as video_module
from megatron_longrl.media.modalities.video import pyav as video_pyav
from megatron_longrl.media.modalities.video.decode import decode_many
from megatron_longrl.media.modalities.video.probe import probe
from megatron_longrl.media.modalities.video.spec import VideoSpec, sample_frame_indices
from megatron_longrl.media.modalities.visual import full_frames
from megatron_longrl.media.modalities.visual import resize as resize_module
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.media.modalities.visual.resize import resize_and_normalise
from tests.unit.data.clips import as_dali, decoded

VIEW = PreprocessSpec(32, 32, (0.5,) * 3, (0.5,) * 3)
B_FRAMES = {"bf": "3", "g": "8"}
FILES: dict[str, dict[str, Any]] = {
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp9_odd.webm": {"codec": "libvpx-vp9", "width": 51, "height": 37},
    "vp9_444.webm": {"codec": "libvpx-vp9", "pixel_format": "yuv444p"},
    "vp9_bt709.webm": {"codec": "libvpx-vp9", "options": {"colorspace": "bt709"}},
    "vp9_full.webm": {"codec": "libvpx-vp9", "options": {"color_range": "pc"}},
    "vp9_variable.webm": {"codec": "libvpx-vp9", "time": lambda k: k * k},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "7"}},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "h264.mp4": {"codec": "libx264", "options": B_FRAMES},
    "h264_open.mp4": {"codec": "libx264", "options": {**B_FRAMES, "x264-params": "open-gop=1"}},
    "h264_odd.mkv": {
        "codec": "libx264",
        "options": B_FRAMES,
        "width": 51,
        "height": 37,
        "pixel_format": "yuv444p",
    },
    "h264_variable.mp4": {"codec": "libx264", "options": B_FRAMES, "time": lambda k: k * (k + 1)},
    "h264.avi": {"codec": "libx264", "options": B_FRAMES},
    "h264.ts": {"codec": "libx264", "options": B_FRAMES},
    "h264_bt709.mp4": {"codec": "libx264", "options": {"colorspace": "bt709"}},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4_b.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
}


Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, write_video: Writer) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, options in FILES.items():
        write_video(folder / name, **options)
    return folder


def read_all(path: Path) -> np.ndarray:
    """uint8 [f, h, w, 3]: every frame, decoded from start to end by FFmpeg."""
    return decoded(path)[0]


def packets(path: Path) -> list[bytes]:
    """The payloads of all video packets, in the order of the file."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def spec_of(
    path: Path, indices: Sequence[int], size: int = 32, mean: float = 0.5, std: float = 0.5
) -> VideoSpec:
    view = PreprocessSpec(size, size, (mean,) * 3, (std,) * 3)
    return VideoSpec(str(path), content_hash(path), tuple(indices), view)


def preprocessed(frames: np.ndarray, size: int) -> Tensor:
    """The resize and normalisation alone, on frames decoded here."""
    view = PreprocessSpec(size, size, (0.5,) * 3, (0.5,) * 3)
    return resize_and_normalise(torch.from_numpy(frames), (size, size), view)


@pytest.mark.parametrize("name", FILES)
def test_exactly_the_wanted_frames(folder: Path, name: str) -> None:
    """In any order, repeated, across keyframes: bit-equal to decoding the file from its start."""
    path = folder / name
    every = read_all(path)
    info = probe(path)
    assert info.num_frames == len(every) == 24
    assert (info.height, info.width) == every.shape[1:3]
    whole = preprocessed(every, 32)
    for indices in (range(24), [23], [20, 3, 3, 11, 0, 21], range(23, -1, -5)):
        pixels = spec_of(path, indices).frames()
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels, whole[list(indices)])


def test_the_frames_are_those_that_were_drawn(
    folder: Path, picture: Callable[[int, int, int], np.ndarray]
) -> None:
    """Against the pictures themselves, so that a common shift of both decoders cannot hide."""
    for name in FILES:
        every = read_all(folder / name)
        drawn = np.stack([picture(k, *every.shape[1:3]) for k in range(24)])
        few, few_drawn = (x[:, ::4, ::4].astype(np.int16) for x in (every, drawn))
        distance = np.abs(few[:, None] - few_drawn[None]).mean(axis=(2, 3, 4))
        assert distance.argmin(axis=1).tolist() == list(range(24)), name


def test_positions_select_among_the_frames_of_a_specification(folder: Path) -> None:
    spec = spec_of(folder / "vp9.webm", [2, 5, 11, 17])
    whole = spec.frames()
    assert torch.equal(spec.frames([3, 1]), whole[[3, 1]])
    assert spec.frames([]).shape == (0, 3, 32, 32)


def test_many_videos_of_several_kinds_in_one_call(folder: Path) -> None:
    requests = [
        (spec_of(folder / name, range(0, 24, step), size), range(0, 24 // step, 2))
        for step, name in zip((1, 2, 3, 4) * 10, FILES, strict=False)
        for size in (32, 40)
    ]
    for (spec, positions), result in zip(requests, decode_many(requests), strict=True):
        assert isinstance(result, Tensor)
        assert torch.equal(result, spec.frames(positions))


@pytest.mark.usefixtures("by_dali")
def test_memory_of_a_run_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long requests are cut and full runs are flushed, without a change of the result."""
    requests = [(spec_of(folder / n, [*range(24), 5]), range(25)) for n in FILES]
    whole = decode_many(requests)
    held: list[int] = []
    decode = video_dali.decode

    def counting_decode(videos: Sequence[Any]) -> list[Tensor]:
        outputs = decode(videos)
        held.append(sum(len(output) for output in outputs))
        return outputs

    def counting_preprocess(frames: Tensor, *how: Any) -> Tensor:
        held.append(len(frames))
        return resize_and_normalise(frames, *how)

    monkeypatch.setattr(video_module, "_RUN_BYTES", 7 * 48 * 48 * 3)
    monkeypatch.setattr(video_dali, "decode", counting_decode)
    monkeypatch.setattr(full_frames, "resize_and_normalise", counting_preprocess)
    parts = decode_many(requests)
    assert max(held) <= 8
    for one, other in zip(whole, parts, strict=True):
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        assert torch.equal(one, other)


def test_a_long_video_is_not_decoded_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_video: Writer
) -> None:
    path = write_video(tmp_path / "long.mp4", "libx264", 400, rate=25, options=B_FRAMES)
    decoded = 0
    frames_of = video_pyav.frames_of

    def counting(container: Any, stream: Any) -> Iterator[Any]:
        nonlocal decoded
        for frame in frames_of(container, stream):
            decoded += 1
            yield frame

    monkeypatch.setattr(video_pyav, "frames_of", counting)
    pixels = spec_of(path, [390, 201, 202]).frames()
    assert 3 <= decoded < 30
    monkeypatch.undo()
    assert torch.equal(pixels, preprocessed(read_all(path)[[390, 201, 202]], 32))


def test_normalisation(folder: Path) -> None:
    """A video of the size asked for is not resampled: the values are those of the formula."""
    every = torch.from_numpy(read_all(folder / "vp9.webm")[:4]).permute(0, 3, 1, 2) / 255
    pixels = spec_of(folder / "vp9.webm", range(4), 48, mean=0.4, std=0.25).frames()
    torch.testing.assert_close(pixels, (every - 0.4) / 0.25, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize", [resize_module._resize, resize_module._by_passes])
@pytest.mark.parametrize("shape", [(37, 51), (100, 100), (48, 48), (270, 480), (112, 300)])
@pytest.mark.parametrize("noise", [False, True])
def test_the_resize_is_that_of_pillow(shape: tuple[int, int], noise: bool, resize: Any) -> None:
    """Both ways, on a CPU and on a GPU, whose kernels take no whole numbers."""
    generator = np.random.default_rng(3)
    if noise:
        image = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
    else:
        coarse = generator.integers(0, 256, (shape[0] // 8, shape[1] // 8, 3), dtype=np.uint8)
        image = np.array(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BILINEAR))
    expected = np.asarray(Image.fromarray(image).resize((112, 112), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    levels = resize(pixels, (112, 112))[0].permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(levels - expected)
    assert difference.mean() <= 0.01
    assert difference.max() <= 2


def test_key_identifies_pixels_not_paths(folder: Path, tmp_path: Path) -> None:
    path = folder / "vp9.webm"
    copy = tmp_path / "other name.webm"
    copy.write_bytes(path.read_bytes())
    spec = spec_of(path, [1, 2])
    assert spec.key() == spec_of(copy, [1, 2]).key()
    assert pickle.loads(pickle.dumps(spec)).key() == spec.key()
    others = [
        spec_of(path, [2, 1]),
        spec_of(path, [1, 2], size=40),
        spec_of(path, [1, 2], mean=0.4),
        spec_of(path, [1, 2], std=0.4),
        spec_of(folder / "vp8.webm", [1, 2]),
    ]
    assert len({spec.key(), *(other.key() for other in others)}) == 6


def test_a_file_that_changes_is_read_again(tmp_path: Path, write_video: Writer) -> None:
    path = write_video(tmp_path / "a.webm", "libvpx-vp9", 5)
    before = probe(path), content_hash(path)
    write_video(path, "libvpx-vp9", 9)
    os.utime(path, ns=(1, 1))
    assert (before[0].num_frames, probe(path).num_frames) == (5, 9)
    assert before[1] != content_hash(path)


def test_threads_have_their_own_pipelines(folder: Path) -> None:
    spec = spec_of(folder / "vp9.webm", range(24))
    expected = spec.frames()
    equal: list[bool] = []

    def work() -> None:
        for _ in range(5):
            equal.append(torch.equal(spec.frames(), expected))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 15


def test_results_do_not_change_under_later_runs(folder: Path) -> None:
    first = spec_of(folder / "vp9.webm", range(4)).frames()
    kept = first.clone()
    spec_of(folder / "vp9.webm", range(20, 24)).frames()
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("frames", "rate", "max_frames", "fps", "expected"),
    [
        (10, 5.0, None, None, range(10)),
        (10, 5.0, 100, None, range(10)),
        (10, 5.0, 4, None, [0, 3, 6, 9]),
        (10, 5.0, 1, None, [0]),
        (10, 5.0, None, 2.0, [0, 3, 6, 9]),
        (10, 5.0, 2, 2.0, [0, 9]),
        (10, 5.0, None, 0.1, [0]),
        (10, 5.0, None, 30.0, range(10)),
        (10, 0.0, None, 1.0, range(10)),
        (1, 5.0, 8, None, [0]),
    ],
)
def test_sampling(
    frames: int, rate: float, max_frames: int | None, fps: float | None, expected: Sequence[int]
) -> None:
    info = VideoInfo(frames, rate, 48, 48, "vp9", frames / max(rate, 1))
    assert sample_frame_indices(info, max_frames, fps) == tuple(expected)


def test_sampling_equals_longvilas() -> None:
    for frames, wanted in [(3600, 512), (1001, 8), (97, 64)]:
        info = VideoInfo(frames, 25.0, 48, 48, "vp9", frames / 25)
        expected = np.round(np.linspace(0, frames - 1, wanted)).astype(int).tolist()
        assert list(sample_frame_indices(info, wanted, None)) == expected


def test_probe_reads_what_is_there(folder: Path) -> None:
    info = probe(folder / "vp9_odd.webm")
    assert (info.codec, info.width, info.height, info.fps) == ("vp9", 51, 37, 6.0)
    assert info.duration_seconds == pytest.approx(4.0, abs=0.2)
    assert probe(folder / "vp9_variable.webm").duration_seconds > 80
    assert probe(folder / "h264.mp4").codec == "h264"


def test_hidden_frames_of_vp8_are_not_counted(tmp_path: Path, write_video: Writer) -> None:
    """A packet that is decoded and not shown moves no frame to another number."""
    path = write_video(tmp_path / "a.webm", "libvpx")
    data = bytearray(path.read_bytes())
    payload = packets(path)[9]
    data[data.find(payload)] &= ~0x10
    path.write_bytes(data)
    every = read_all(path)
    assert probe(path).num_frames == len(every) == 23
    pixels = spec_of(path, [8, 9, 22]).frames()
    assert torch.equal(pixels, preprocessed(every[[8, 9, 22]], 32))


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def damage(path: Path, packet: int) -> None:
    data = bytearray(path.read_bytes())
    payload = packets(path)[packet]
    at = data.find(payload)
    data[at : at + len(payload)] = bytes(len(payload))
    path.write_bytes(data)


def assert_one_line(error: object, path: Path) -> None:
    assert isinstance(error, MediaError)
    assert str(error).startswith(f"{path}: ")
    assert "\n" not in str(error)
    assert len(error.reason) < 200


FAST_START = {"movflags": "faststart"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
@pytest.mark.parametrize(
    ("name", "codec", "mux_options"),
    [
        ("a.webm", "libvpx-vp9", {}),
        ("a.webm", "libvpx", {}),
        ("a.mkv", "libx264", {}),
        ("a.avi", "mjpeg", {}),
        ("a.mp4", "libx264", {}),
        ("a.mp4", "libx264", FAST_START),
        ("a.mp4", "libx264", FRAGMENTS),
    ],
)
def test_truncated_files(
    tmp_path: Path,
    write_video: Writer,
    name: str,
    codec: str,
    mux_options: dict[str, str],
    share: float,
) -> None:
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(
        tmp_path / name, codec, 48, pixel_format=pixel_format, mux_options=mux_options
    )
    assert probe(path).num_frames == 48
    cut(path, share)
    with pytest.raises(MediaError) as caught:
        probe(path)
    assert_one_line(caught.value, path)


@pytest.mark.parametrize(
    "name", ["vp9.webm", "vp8.webm", "mjpeg.avi", "h264.mp4", "mpeg4.mp4", "h264.avi"]
)
def test_a_damaged_packet_is_an_error_and_not_a_picture(
    folder: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes((folder / name).read_bytes())
    damage(path, 5)
    good = spec_of(folder / "vp9.webm", range(24))
    bad = spec_of(path, range(24))
    before, error, after = decode_many([(good, range(24)), (bad, range(24)), (good, [3])])
    assert_one_line(error, path)
    assert isinstance(before, Tensor)
    assert isinstance(after, Tensor)
    assert torch.equal(before, good.frames())
    assert torch.equal(after, before[[3]])
    with pytest.raises(MediaError):
        bad.frames()


def test_what_is_no_video(tmp_path: Path) -> None:
    text, empty, audio = tmp_path / "text.mp4", tmp_path / "empty.webm", tmp_path / "sound.wav"
    text.write_text("this is not a video\n" * 50)
    empty.write_bytes(b"")
    audio.write_bytes(
        b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\0\0\0"
    )
    for path in (text, empty, audio, tmp_path / "missing.mp4", tmp_path):
        for ask in (probe, lambda p: VideoSpec(str(p), "", (0,), VIEW).frames()):
            with pytest.raises(MediaError) as caught:
                ask(path)
            assert_one_line(caught.value, path)
    for path in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(MediaError):
            content_hash(path)


def test_a_frame_beyond_the_end_is_an_error(folder: Path) -> None:
    for name in ("vp9.webm", "h264.mp4"):
        with pytest.raises(MediaError, match="frame 24 was asked for, and there are 24"):
            spec_of(folder / name, [0, 24]).frames()


def test_errors_survive_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "broken\n  here")))
    assert (str(error), error.path, error.reason) == (
        "a.mp4: broken here",
        "a.mp4",
        "broken here",
    )


def test_dali_never_makes_up_a_frame_and_recovers(folder: Path) -> None:
    """Its default is a black picture beyond the end; and a refusal must not spoil later runs."""
    encoded = np.fromfile(folder / "vp9.webm", dtype=np.uint8)
    with pytest.raises(RuntimeError):
        video_dali.decode([(encoded, np.array([3, 24], dtype=np.int32))])
    (frames,) = video_dali.decode([(encoded, np.array([3], dtype=np.int32))])
    assert np.array_equal(frames.numpy(), decoded(folder / "vp9.webm", as_dali)[0][[3]])


@pytest.mark.usefixtures("by_dali")
def test_without_dali_pyav_decodes_and_it_is_told_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, indices = str(folder / "vp9.webm"), (0, 3, 7)
    spec = VideoSpec(path, content_hash(path), indices, VIEW)
    by_dali = spec.frames()
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setattr(video_dali, "_pipelines", threading.local())
    video_dali._is_there.cache_clear()
    try:
        for _ in range(2):
            assert torch.equal(spec.frames(), by_dali)
    finally:
        video_dali._is_there.cache_clear()
    (told,) = [record.getMessage() for record in caplog.records]
    assert "PyAV decodes all videos" in told and "megatron_longrl[gpu]" in told
