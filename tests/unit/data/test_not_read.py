"""What is no video or image is refused at once, in one line with the file's name; nothing waits, no
other file is opened, no other program is started."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.image.reader import probe_image, read_image
from megatron_longrl.media.modalities.video import open as video_open
from megatron_longrl.media.modalities.video.probe import probe
from megatron_longrl.media.modalities.visual.info import MOST_PIXELS
from tests.unit.data.clips import copy, decoded, ours
from tests.unit.data.video_files import draw_picture

Writer = Callable[..., Path]


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    """A test that hangs is ended by the signal's default action."""
    signal.alarm(20)
    yield
    signal.alarm(0)


def refusal(call: Callable[[Path], object], path: Path) -> str:
    """The reason; its line begins with the file."""
    with pytest.raises(MediaError) as caught:
        call(path)
    assert str(caught.value).isprintable()
    assert caught.value.path == str(path)
    assert 0 < len(caught.value.reason) < 200
    return caught.value.reason


def special(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link_to_pipe":
            os.mkfifo(folder / "pipe")
            path.symlink_to(folder / "pipe")
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))
        case "broken_link":
            path.symlink_to(folder / "nowhere")
        case "circle":
            path.symlink_to(path)
        case "device":
            return Path("/dev/zero")
        case "link_to_device":
            path.symlink_to("/dev/urandom")
        case "empty":
            path.touch()
        case "proc":
            return Path("/proc/self/mem")
        case "long_name":
            return folder / ("a" * 300 + ".mp4")
        case "behind_a_file":
            path.write_bytes(b"x")
            return path / "a.mp4"
    return path


SPECIAL = {
    "folder": "a folder",
    "pipe": "a named pipe",
    "link_to_pipe": "a named pipe",
    "socket": "a socket",
    "broken_link": "a link that leads nowhere",
    "circle": "a link that leads nowhere",
    "device": "a device",
    "link_to_device": "a device",
    "empty": "empty",
    "proc": "empty",
    "missing": "No such file",
    "long_name": "name too long",
    "behind_a_file": "Not a directory",
}


@pytest.mark.parametrize("call", [probe, probe_image, read_image, content_hash])
@pytest.mark.parametrize("kind", SPECIAL)
def test_no_regular_file(tmp_path: Path, kind: str, call: Callable[[Path], object]) -> None:
    assert SPECIAL[kind] in refusal(call, special(tmp_path, kind))


@pytest.mark.parametrize(
    "name",
    [
        "a\0b.mp4", "a\ud800.mp4", "https://host/a.mp4", "data/http://host/a.mp4", "rtsp://x:1/y",
        "file:///etc/passwd", "concat:a.mp4|b.mp4", "pipe:0", "-", "s3://bucket/a.mp4", "a%03d.png",
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", [probe, probe_image])
def test_names(name: str, call: Callable[[Path], object]) -> None:
    reason = refusal(call, Path(name))
    assert ("://" in name) == ("download it first" in reason)


@pytest.mark.parametrize(
    "name", ["new\nline", "\x1b[31mred", "\u202eright", "\udcff", "tab\t", "ä好"]
)
def test_names_in_messages(tmp_path: Path, name: str) -> None:
    """Nothing in a file's name breaks a log's line, or colours it."""
    path = tmp_path / f"{name}.mp4"
    path.write_bytes(b"no video" * 10)
    with pytest.raises(MediaError) as caught:
        probe(path)
    assert str(caught.value).isprintable()
    assert ("ä好" in str(caught.value)) == (name == "ä好")


@pytest.mark.parametrize("name", ["concat:a.mp4", "a%d.mp4", "http:a.mp4", "-.mp4", "a b?.mp4"])
def test_a_name_is_no_protocol(
    tmp_path: Path, name: str, write_video: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the current folder, too, where nothing stands before it."""
    monkeypatch.chdir(tmp_path)
    data = write_video(tmp_path / "source.mp4", "libx264", 5).read_bytes()
    for path in (tmp_path / name, Path(name)):
        path.write_bytes(data)
        assert probe(path).num_frames == len(ours(path)) == 5


PLAYLISTS: dict[str, str] = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{video}\n"
    "#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {video}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="0"><BaseURL>{video}</BaseURL></Representation></AdaptationSet></Period>'
    "</MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "m3u": "#EXTM3U\n{video}\n",
    "lavfi": "testsrc=size=64x48",
}


@pytest.mark.parametrize("ending", ["m3u8", "mp4", "mkv", "mpd", "sdp", "ffconcat", "txt"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists(tmp_path: Path, write_video: Writer, kind: str, ending: str) -> None:
    """Whatever they are called; the video that they name is there."""
    video = write_video(tmp_path / "video.ts", "libx264", 5)
    path = tmp_path / f"list.{ending}"
    path.write_text(PLAYLISTS[kind].format(video=video))
    assert "not a video" in refusal(probe, path)


@pytest.mark.parametrize("ending", ["png", "jpg", "mp4"])
def test_pictures_are_no_videos(tmp_path: Path, ending: str) -> None:
    for number in range(3):
        picture = Image.fromarray(draw_picture(number, 48, 64))
        picture.save(tmp_path / f"{number}.png")
    path = tmp_path / f"0.{ending}"
    (tmp_path / "0.png").rename(path)
    refusal(probe, path)


def test_a_codec_without_a_decoder(tmp_path: Path, write_video: Writer) -> None:
    path = write_video(tmp_path / "a.webm", "libvpx-vp9", 5)
    path.write_bytes(path.read_bytes().replace(b"V_VP9", b"V_VPX"))
    assert "no decoder" in refusal(probe, path)


def with_cover(path: Path, video: Path | None) -> Path:
    """An M4A or MP4 with a picture of its cover, before the video where there is one."""
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound: Any = container.add_stream("aac", rate=8000, layout="mono")
        old = av.open(str(video)) if video else None
        moving = container.add_stream_from_template(old.streams.video[0]) if old else None
        picture = av.VideoFrame.from_ndarray(draw_picture(3, 48, 64), format="rgb24")
        for packet in [*cover.encode(picture), *cover.encode()]:
            container.mux(packet)
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        for packet in [*sound.encode(silence), *sound.encode()]:
            container.mux(packet)
        if old and moving:
            for packet in old.demux(old.streams.video[0]):
                if packet.size:
                    packet.stream = moving
                    container.mux(packet)
    return path


def test_a_cover_is_no_video(tmp_path: Path, write_video: Writer) -> None:
    path = with_cover(tmp_path / "song.mp4", None)
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & av.stream.Disposition.attached_pic
    assert "attached picture" in refusal(probe, path)
    video = write_video(tmp_path / "video.mp4", "libx264", 7)
    both = with_cover(tmp_path / "film.mp4", video)
    assert probe(both).num_frames == 7
    assert np.array_equal(ours(both), decoded(video)[0])


def test_sound_alone(tmp_path: Path) -> None:
    path = tmp_path / "sound.mka"
    with av.open(str(path), "w", format="matroska") as container:
        sound: Any = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        for packet in [*sound.encode(silence), *sound.encode()]:
            container.mux(packet)
    assert "no video stream" in refusal(probe, path)


@pytest.mark.parametrize("says", ["all", "later ones"])
def test_absurd_frames(tmp_path: Path, write_video: Writer, says: str) -> None:
    """Fifteen thousand pixels a side, which FFmpeg would decode: refused before that."""
    path = write_video(tmp_path / "a.mkv", "mjpeg", 9, pixel_format="yuvj420p")
    data = bytearray(path.read_bytes())
    starts = [n for n in range(len(data)) if data[n : n + 4] == b"\xff\xc0\0\x11"]
    assert len(starts) == 9
    for start in starts if says == "all" else starts[4:]:
        data[start + 5 : start + 9] = b"\x3c\x8c\x3c\x8c"
    path.write_bytes(data)
    began = time.perf_counter()
    assert "cannot be decoded" in refusal(ours, path)
    assert time.perf_counter() - began < 1  # to decode one takes more


def test_frames_that_are_told_to_be_large(
    tmp_path: Path, write_video: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mkv", "ffv1", 3)
    assert video_open._OPTIONS["max_pixels"] == str(MOST_PIXELS)
    monkeypatch.setattr(video_open, "_OPTIONS", {"max_pixels": "2000"})
    assert "cannot be decoded" in refusal(probe, path)  # by the decoder's own look
    monkeypatch.undo()
    monkeypatch.setattr(video_open, "MOST_PIXELS", 48 * 48 - 1)
    assert "frames of 48 x 48 pixels are larger" in refusal(probe, path)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts"])
def test_no_frames(tmp_path: Path, write_video: Writer, ending: str) -> None:
    video = write_video(tmp_path / "video.mp4", "libx264", 5)
    path = copy(video, tmp_path / f"none.{ending}", keep=lambda number, time, is_key: False)
    refusal(probe, path)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


PNG = b"\x89PNG\r\n\x1a\n"
BAD_IMAGES: dict[str, bytes] = {
    "text": b"this is not an image\n" * 9,
    "truncated_ihdr.png": PNG + chunk(b"IHDR", b"\0\0\0\1\0\0"),
    "no_data.png": PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)),
    "zero.png": PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 4, 8, 2, 0, 0, 0)),
    "huge.png": PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)),
    "bomb.png": PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
    "text_bomb.png": PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))),
    "letters.ppm": b"P6\n40\xff24 30\n255\n" + bytes(99),
    "short.ppm": b"P6\n40 30\n255\n" + bytes(99),
    "negative.pfm": b"Pf\n-3 3\n-1.0\n" + bytes(99),
    "empty.avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(40),
    "short.dds": b"DDS " + struct.pack("<I", 124) + bytes(20),
    "odd.dds": b"DDS " + struct.pack("<7I", 124, 0x1007, 4, 4, 8, 0, 0) + b"\xff" * 96,
    "short.sgi": b"\x01\xda\1\1\0\3\0\4\0\4\0\3",
    "short.jp2": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 ",
    "short.j2k": b"\xff\x4f\xff\x51\0\x2f\0\0",
    "short.gif": b"GIF89a\4\0\4\0\x80\0\0",
    "short.webp": b"RIFF\x20\0\0\0WEBPVP8 \x10\0\0\0",
    "short.tiff": b"II*\0\x08\0\0\0\1\0",
    "circle.tiff": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "short.bmp": b"BM" + bytes(12) + struct.pack("<I", 40),
    "short.icns": b"icns\0\0\0\x08",
    "short.ico": b"\0\0\1\0\1\0\4\4\0\0\1\0\x20\0\xff\xff\xff\xff\x16\0\0\0",
    "short.psd": b"8BPS\0\1" + bytes(6),
    "short.qoi": b"qoif\0\0",
    "short.blp": b"BLP2" + bytes(20),
    "short.ftex": b"FTEX" + bytes(8),
    "short.xpm": b'/* XPM */\nstatic char *x[] = {\n"9 9',
    "short.fits": b"SIMPLE  =                    T".ljust(2880),
    "grib": b"GRIB" + bytes(20),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "bufr": b"BUFR" + bytes(20),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images_that_are_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD_IMAGES[name])
    refusal(read_image, path)


@pytest.mark.parametrize(
    "format_name", ["PNG", "JPEG", "JPEG2000", "WEBP", "AVIF", "TIFF", "BMP", "PPM", "GIF", "SGI"]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_images_that_break_off(tmp_path: Path, format_name: str, share: float) -> None:
    path = tmp_path / "a"
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format=format_name)
    assert read_image(path).shape == (60, 80, 3)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refusal(read_image, path)


@pytest.mark.parametrize("ending", ["eps", "png", "jpg"])
@pytest.mark.parametrize("starts", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6" + bytes(28)])
def test_postscript_is_never_run(
    tmp_path: Path, starts: bytes, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("a program was started")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    monkeypatch.setattr(os, "system", started)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(starts + b"%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n")
    assert "not an image" in refusal(read_image, path)


def test_large_images(tmp_path: Path) -> None:
    """Up to the limit, without a warning of Pillow's."""
    path = tmp_path / "large.png"
    Image.new("1", (16000, 6000)).save(path)
    assert probe_image(path).width == 16000
    assert 16000 * 6000 < MOST_PIXELS < 16000 * 12000
    where = "megatron_longrl.media.modalities.image.reader"
    code = f"from {where} import probe_image as p; print(p({str(path)!r}).height)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("6000\n", "")
    Image.new("1", (16000, 12000)).save(path)
    assert "pixels" in refusal(probe_image, path)


ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation(tmp_path: Path, orientation: int, format_name: str) -> None:
    """Turned as transformers' ``load_image`` turns it, or as it is stored, as VILA reads it."""
    from transformers.image_utils import load_image

    path = tmp_path / f"a.{format_name.lower()}"
    picture = Image.fromarray(draw_picture(1, 48, 80))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, format=format_name, exif=exif)
    theirs = np.asarray(load_image(str(path)).convert("RGB"))
    assert np.array_equal(read_image(path), theirs)
    info = probe_image(path)
    assert (info.height, info.width, 3) == theirs.shape
    with Image.open(path) as image:
        stored = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_image(path, upright=False), stored)
    info = probe_image(path, upright=False)
    assert (info.height, info.width, 3) == stored.shape
    if format_name == "JPEG":
        assert (theirs.shape == stored.shape) == (orientation < 5)
