"""Sound written to files by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CODECS = {
    ".wav": ("pcm_s16le", 16_000),
    ".flac": ("flac", 16_000),
    ".ogg": ("libopus", 48_000),
    ".opus": ("libopus", 48_000),
    ".webm": ("libopus", 48_000),
    ".mkv": ("libopus", 48_000),
    ".mp3": ("libmp3lame", 44_100),
    ".m4a": ("aac", 44_100),
    ".mp4": ("aac", 48_000),
    ".mov": ("aac", 48_000),
}
"""Codec of a container, and samples a second."""
PICTURES = {".webm": "libvpx-vp9", ".mkv": "libx264", ".mp4": "libx264", ".mov": "libx264"}


def tone(seconds: float, hertz: float, rate: int, loud: float = 0.5) -> np.ndarray:
    """float32 samples of a sine."""
    times = np.arange(round(seconds * rate)) / rate
    return (loud * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def beep(seconds: float, start: float, end: float, rate: int, hertz: float = 880.0) -> np.ndarray:
    """Silence but for a tone from ``start`` to ``end``."""
    samples = np.zeros(round(seconds * rate), dtype=np.float32)
    inner = tone(end - start, hertz, rate)
    first = round(start * rate)
    samples[first : first + len(inner)] = inner
    return samples


def add_sound(
    container: Any,
    pieces: Sequence[tuple[float, np.ndarray]],
    codec: str,
    rate: int,
    channels: int = 1,
    claimed_rate: float | None = None,
) -> None:
    """Encode sound whose pieces begin at given seconds.

    Args:
        pieces: samples [n] of every channel.
        claimed_rate: samples a second that the timestamps tell, where the clock has drifted.
    """
    layouts = {1: "mono", 2: "stereo", 6: "5.1"}
    stream = container.add_stream(codec, rate=rate, layout=layouts[channels])
    kind = stream.codec_context.format.name
    size = stream.codec_context.frame_size or 1024
    for begin, samples in pieces:
        for first in range(0, len(samples), size):
            part = np.repeat(samples[None, first : first + size], channels, axis=0)
            if kind.startswith("s16"):
                part = (part * 32767).astype(np.int16)
            elif kind.startswith("s32"):
                part = (part * 2147483647.0).clip(-2147483648, 2147483392).astype(np.int32)
            if not kind.endswith("p"):
                part = np.ascontiguousarray(part.T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(part, format=kind, layout=layouts[channels])
            frame.sample_rate = rate
            frame.time_base = Fraction(1, 1_000_000)
            at = begin + first / (claimed_rate or rate)
            frame.pts = round(at * 1_000_000)
            container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_sound(path: Path, samples: np.ndarray, rate: int | None = None, **options: Any) -> Path:
    """A file of sound, by the codec of its ending."""
    codec, usual = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        add_sound(container, [(0.0, samples)], codec, rate or usual, **options)
    return path


def write_film(
    path: Path,
    frames: Sequence[np.ndarray],
    rate: Fraction | int,
    pieces: Sequence[tuple[float, np.ndarray]] | None,
    sound_rate: int = 48_000,
    **options: Any,
) -> Path:
    """A film with sound; with none where ``pieces`` is None.

    Args:
        frames: uint8 [h, w, 3].
        pieces: see :func:`add_sound`.
    """
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(PICTURES[path.suffix], rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        packets = []
        for image in frames:
            packets += stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
        packets += stream.encode()
        if pieces is not None:
            add_sound(container, pieces, CODECS[path.suffix][0], sound_rate, **options)
        for packet in packets:
            container.mux(packet)
    return path
