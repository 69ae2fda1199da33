"""The stream's picture, upright: rotation; sizes that a container or the stream tells."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video import coded_frames
from megatron_longrl.media.modalities.video import decode as video_module
from megatron_longrl.media.modalities.video import open as video_open
from megatron_longrl.media.modalities.video.probe import probe, scan
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from tests.unit.data.clips import by_opencv, copy, decoded, ours
from tests.unit.data.video_files import draw_picture

Writer = Callable[..., Path]
Convert = Callable[[Any], np.ndarray]
ROTATED = [
    ("libx264", "mp4"),
    ("libx264", "mov"),
    ("libx264", "mkv"),
    ("libvpx-vp9", "mp4"),
    ("libvpx-vp9", "webm"),
    ("mpeg4", "mp4"),
    ("mjpeg", "mov"),
]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90, 45])
@pytest.mark.parametrize(("codec", "ending"), ROTATED)
def test_upright(
    tmp_path: Path, write_video: Writer, codec: str, ending: str, degrees: int
) -> None:
    """As OpenCV turns them; what is no quarter turn is left alone."""
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = write_video(
        tmp_path / f"source.{ending}", codec, 6, width=64, height=48, pixel_format=pixel_format
    )
    stored, _ = decoded(source)
    path = copy(source, tmp_path / f"turned.{ending}", rotation=degrees)
    turns = 0 if degrees % 90 else degrees // 90
    expected = np.rot90(stored, turns, axes=(1, 2))
    assert np.array_equal(ours(path), expected)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[1:3]
    assert scan(path).stored_size == (64, 48)
    assert np.array_equal(by_opencv(path), expected)


def say_size(path: Path, width: int, height: int, says: tuple[int, int]) -> Path:
    """Let the header of a Matroska file tell another size."""
    data = bytearray(path.read_bytes())
    for element, stored, said in ((0xB0, width, says[0]), (0xBA, height, says[1])):
        at = data.find(bytes([element, 0x81, stored]))
        assert at > 0
        data[at + 2] = said
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "says", [(255, 48), (32, 48), (64, 24), (64, 255), (1, 1), (255, 255), (48, 64)]
)
@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx", "mjpeg", "libx264", "mpeg4"])
def test_a_container_that_tells_another_size(
    tmp_path: Path, write_video: Writer, codec: str, says: tuple[int, int], by_dali: Convert
) -> None:
    """DALI writes beyond its memory where a stream is wider than its container says."""
    if codec == "mjpeg":
        says = says[0], min(says[1], 60)  # FFmpeg takes much lower pictures for half of a frame
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / "a.mkv", codec, 6, width=64, height=48, pixel_format=pixel_format)
    expected, _ = decoded(path, by_dali)
    say_size(path, 64, 48, says)
    assert (probe(path).width, probe(path).height) == (64, 48)
    assert np.array_equal(ours(path), expected)


def test_the_shape_of_what_dali_gives_is_looked_at(
    tmp_path: Path, write_video: Writer, monkeypatch: pytest.MonkeyPatch, by_dali: Convert
) -> None:
    """If it were given such a file after all."""
    path = write_video(tmp_path / "a.webm", "libvpx-vp9", 6, width=64, height=48)
    expected, _ = decoded(path, by_dali)
    wrong = say_size(write_video(tmp_path / "b.webm", "libvpx-vp9", 6, width=64, height=48),
                     64, 48, (255, 48))  # fmt: skip
    encoded = np.fromfile(wrong, dtype=np.uint8)
    monkeypatch.setattr(video_module, "cut", lambda *_: encoded)
    assert np.array_equal(ours(path), expected)


def encoded(codec: str, size: tuple[int, int], frames: int) -> list[tuple[bytes, bool]]:
    """Packets, and whether each is a key frame."""
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height = size
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    context.time_base = Fraction(1, 6)
    packets = []
    for index in range(frames):
        frame = av.VideoFrame.from_ndarray(draw_picture(index, *size[::-1]), format="rgb24")
        frame.pts, frame.time_base = index, Fraction(1, 6)
        packets += context.encode(frame)
    packets += context.encode()
    return [(bytes(packet), packet.is_keyframe) for packet in packets]


def mux(path: Path, codec: str, size: tuple[int, int], packets: list[tuple[bytes, bool]]) -> Path:
    """A file of packets that are or are not key frames."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=6)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number, (data, is_key) in enumerate(packets):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 6), stream
            packet.is_keyframe, packet.duration = is_key, 1
            container.mux(packet)
    return path


def joined(path: Path, codec: str, sizes: list[tuple[int, int]]) -> Path:
    """A stream that changes its size, as browsers record calls: four frames of each."""
    packets = [packet for size in sizes for packet in encoded(codec, size, 4)]
    return mux(path, codec, sizes[0], packets)


@pytest.mark.usefixtures("by_dali")
@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx", "mjpeg"])
@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 48), (96, 80)],
        [(64, 48), (96, 48)],
        [(96, 80), (64, 48)],
        [(64, 48), (48, 64)],
        [(64, 48), (32, 24), (64, 48)],
    ],
    ids=lambda sizes: "-".join(f"{w}x{h}" for w, h in sizes),
)
def test_a_stream_that_changes_its_size(
    tmp_path: Path, codec: str, sizes: list[tuple[int, int]]
) -> None:
    """Each frame is resized from the size that it has."""
    path = joined(tmp_path / "a.mkv", codec, sizes)
    info = probe(path)
    assert info.num_frames == 4 * len(sizes)
    assert (info.width, info.height) == sizes[0]
    assert not scan(path).is_plain
    view = PreprocessSpec(32, 32, (0.5,) * 3, (0.5,) * 3)
    found = VideoSpec(str(path), "", tuple(range(info.num_frames)), view).frames()
    for number, size in enumerate(sizes):
        alone = joined(tmp_path / f"{number}.mkv", codec, [size])
        expected = VideoSpec(str(alone), "", tuple(range(4)), view).frames()
        assert np.array_equal(found[4 * number : 4 * number + 4], expected)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx", "mjpeg"])
def test_a_stream_that_grows_beyond_what_is_read(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_open, "_OPTIONS", {"max_pixels": "5000"})
    path = joined(tmp_path / "a.mkv", codec, [(64, 48), (96, 80)])
    assert len(ours(path, [0, 1, 2, 3])) == 4
    with pytest.raises(MediaError, match="cannot be decoded"):
        ours(path)


@pytest.mark.parametrize("size", [(16, 16), (51, 37), (640, 360), (300, 1)])
@pytest.mark.parametrize("codec", ["vp8", "vp9", "mjpeg"])
def test_packets_tell_their_size(codec: str, size: tuple[int, int]) -> None:
    names = {"vp8": "libvpx", "vp9": "libvpx-vp9", "mjpeg": "mjpeg"}
    packets = encoded(names[codec], size, 5)
    for number, (data, is_key) in enumerate(packets):
        shown, sizes = coded_frames.READERS[codec](data)
        assert shown
        assert sizes == ({size} if is_key else set()), number
    assert packets[0][1]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv440p", "yuv444p", "gbrp"])
def test_profiles_of_vp9(tmp_path: Path, write_video: Writer, pixel_format: str) -> None:
    path = write_video(
        tmp_path / "a.webm", "libvpx-vp9", 6, width=64, height=48, pixel_format=pixel_format
    )
    assert scan(path).is_plain
    assert np.array_equal(ours(path), decoded(path)[0])


@pytest.mark.parametrize("in_one_packet", [True, False])
def test_hidden_frames_of_vp9(tmp_path: Path, in_one_packet: bool) -> None:
    """In a packet with the frame that is shown, as they should be, or in one of their own."""
    packets = [data for data, _ in encoded("libvpx-vp9", (64, 48), 8)]
    hidden = bytes([packets[0][0] & ~2, *packets[0][1:]])
    assert coded_frames.vp9(hidden) == (False, {(64, 48)})
    mark = bytes([0xC0 | 1 << 3 | 1])  # two frames, sizes of two bytes
    sizes = b"".join(len(data).to_bytes(2, "little") for data in (hidden, packets[1]))
    together = hidden + packets[1] + mark + sizes + mark
    assert coded_frames.vp9(together) == (True, {(64, 48)})
    # Matroska's muxer would put the two into one packet.
    path = tmp_path / ("a.mkv" if in_one_packet else "a.nut")
    parts = [together, *packets[2:]] if in_one_packet else [hidden, *packets[1:]]
    mux(path, "libvpx-vp9", (64, 48), [(data, n == 0) for n, data in enumerate(parts)])
    frames, _ = decoded(path)
    assert len(frames) == 7
    assert scan(path).is_plain == in_one_packet
    assert np.array_equal(ours(path), frames)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff\xd8", b"\xff\xd8\xff", bytes(30), b"\xff" * 30]
)
@pytest.mark.parametrize("codec", coded_frames.READERS)
def test_packets_with_nothing_in_them(codec: str, data: bytes) -> None:
    shown, sizes = coded_frames.READERS[codec](data)
    assert isinstance(shown, bool)
    assert isinstance(sizes, set)
