"""Small good videos, images and files of sound, whose mutants are read."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.audio_files import CODECS, PICTURES, beep, tone, write_film, write_sound
from tests.unit.data.video_files import write

VIDEOS: dict[str, dict[str, Any]] = {
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp9.mp4": {"codec": "libvpx-vp9"},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "7"}},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "mjpeg.mkv": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "h264.mp4": {"codec": "libx264", "options": {"bf": "3", "g": "8"}},
    "h264_start.mp4": {"codec": "libx264", "mux_options": {"movflags": "faststart"}},
    "h264_parts.mp4": {"codec": "libx264", "mux_options": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {"codec": "libx264", "time": lambda k: k * (k + 1)},
    "h264.ts": {"codec": "libx264"},
    "h264.flv": {"codec": "libx264"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25},
    "ffv1.mkv": {"codec": "ffv1"},
    "plain.gif": {"codec": "gif", "pixel_format": "rgb8"},
    "plain.nut": {"codec": "mpeg4"},
}
"""What :func:`~tests.unit.data.video_files.write` is given, by name."""

_MODES = ("RGB", "L", "P", "RGBA", "1", "I;16", "F", "CMYK", "LA", "I")


def videos(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each."""
    for name, how in VIDEOS.items():
        yield name, write(folder / name, frames=12, **how).read_bytes()


def sounds(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of sound alone, in every codec and oddly, and of films with theirs."""
    for ending, (_, rate) in CODECS.items():
        path = write_sound(folder / f"sound{ending}", beep(1.3, 0.4, 0.6, rate))
        yield path.name, path.read_bytes()
    odd: dict[str, dict[str, Any]] = {
        "rate.wav": {"rate": 8_000},
        "channels.flac": {"rate": 44_100, "channels": 6},
        "stereo.m4a": {"rate": 48_000, "channels": 2},
    }
    for name, options in odd.items():
        samples = beep(1.3, 0.4, 0.6, options["rate"])
        yield name, write_sound(folder / name, samples, **options).read_bytes()
    pictures = list(np.random.default_rng(1).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8))
    late = [(0.3, tone(0.4, 440, 48_000)), (1.1, tone(0.2, 880, 48_000))]
    for ending in PICTURES:
        path = write_film(folder / f"film{ending}", pictures, 4, late)
        yield path.name, path.read_bytes()


def images() -> Iterator[tuple[str, bytes]]:
    """Of every format that Pillow writes, in modes that it takes, and of some that it only reads;
    of all others the letters by which it knows them."""
    Image.init()
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (4, 5, 3)), np.ones((6, 6, 1)))
    picture = Image.fromarray(pixels.astype(np.uint8))
    for name in sorted(Image.SAVE):
        for mode in _MODES:
            file = io.BytesIO()
            try:
                picture.convert(mode).save(file, format=name)
            except Exception:
                continue  # a mode that this format does not have
            yield f"{mode}.{name.lower()}", file.getvalue()
    yield from _only_read()


def _only_read() -> Iterator[tuple[str, bytes]]:
    raw = bytes(range(48))
    yield "fits", b"".join(
        line.ljust(80)
        for line in (
            b"SIMPLE  = T", b"BITPIX  = 8", b"NAXIS   = 2", b"NAXIS1  = 8", b"NAXIS2  = 6", b"END"
        )
    ).ljust(2880) + raw  # fmt: skip
    yield "sun", struct.pack(">8I", 0x59A66A95, 8, 6, 8, 48, 1, 0, 0) + raw
    yield (
        "xpm",
        (
            b'/* XPM */\nstatic char *x[] = {\n"2 2 2 1",\n". c #000000",\n'
            b'"# c #ffffff",\n".#",\n"#."\n};'
        ),
    )
    yield "psd", (b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(14) + raw)
    yield "gbr", struct.pack(">5I", 28, 2, 8, 6, 1) + b"GIMP" + struct.pack(">I", 10) + raw
    yield "ftex", b"FTEX" + struct.pack("<8i", 1, 4, 4, 1, 1, 1, 40, 48) + raw
    yield (
        "qoi",
        b"qoif" + struct.pack(">IIBB", 4, 4, 3, 0) + b"\xfe\1\2\3\xcf" * 3 + bytes(7) + b"\1",
    )
    for magic in (
        b"\xb1\x68\xde\x3a" + raw, b"SDPX" + raw, b"\x80\xe8" + raw, b"BLP1" + raw, b"DDS " + raw,
        b"GRIB" + raw, b"BUFR" + raw, b"\x89HDF\r\n\x1a\n" + raw, b"%!PS-Adobe-3.0 EPSF-3.0" + raw,
        b"\xd7\xcd\xc6\x9a" + raw, b"\0\0\2\0\1\0\4\4" + raw, b"id=ImageMagick" + raw,
        b"\x12\xaf" + raw, b"\xff\x4f\xff\x51" + raw, b"icns" + raw, b"P7" + raw,
        b"P6 3 3 255 " + raw, b"Pf\n3 3\n-1.0\n" + raw, b"RIFF\x20\0\0\0WEBPVP8 " + raw,
        b"\0\0\0\x1cftypavif" + raw,
    ):  # fmt: skip
        yield "magic", magic * 4
