"""Draw films of figures and tones with numpy, and encode them as H.264 and AAC in MP4."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longrl.arena.tones_film import Film
from megatron_longrl.atomic_file import atomic_write

RATE = 16_000
"""Samples a second."""
FRAMES_OF_SCENE = 2
"""The number of frames that Qwen2.5-Omni takes together."""
SCENE_SECONDS = 0.5
_FPS = round(FRAMES_OF_SCENE / SCENE_SECONDS)
_FIGURES = 3
"""A disc, a square and a diamond: which one it is decides nothing."""
_PITCHES = ((350.0, 450.0), (1500.0, 1900.0))
"""Range in hertz of each of ``PITCHES``."""
_TONE_SECONDS = (0.2, 0.3)
_TONE_BEGINS = (0.08, 0.16)
"""Seconds after the beginning of its scene."""
_LOUD = (0.15, 0.5)
_FADE_SECONDS = 0.02
_NOISE = 1e-3
_QUALITY = 20
_SOUND_OPTIONS = {"aac_coder": "fast"}
"""A sixth of the time of the default, which is most of a film's."""


def render_frames(film: Film, size: int) -> np.ndarray:
    """RGB frames [frames, size, size, 3], uint8. The same arguments give the same frames."""
    rng = np.random.default_rng([film.style, 0])
    axis = (np.arange(size) + 0.5) / size
    ground = rng.uniform(20, 70) + rng.uniform(-15, 15, 3)
    frames = np.broadcast_to(ground, (len(film.colours), FRAMES_OF_SCENE, size, size, 3)).copy()
    for scene, colour in zip(frames, film.colours, strict=True):
        ink = rng.uniform(10, 70, 3)
        ink[colour] = rng.uniform(190, 250)
        centre, radius = rng.uniform(0.38, 0.62, 2), rng.uniform(0.24, 0.34)
        x, y = np.abs(axis[None, :] - centre[0]), np.abs(axis[:, None] - centre[1])
        figure = rng.integers(_FIGURES)
        distance = (np.hypot(x, y), np.maximum(x, y), (x + y) / np.sqrt(2))[figure]
        cover = np.clip((radius - distance) * size + 0.5, 0, 1)
        scene += cover[..., None] * (ink - scene)
    frames += rng.normal(0, 3, (*frames.shape[:-1], 1))
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8).reshape(-1, size, size, 3)


def render_sound(film: Film) -> np.ndarray:
    """Float32 samples, ``SCENE_SECONDS`` of them for each scene."""
    rng = np.random.default_rng([film.style, 1])
    samples = rng.normal(0, _NOISE, round(len(film.tones) * SCENE_SECONDS * RATE))
    for scene, tone in enumerate(film.tones):
        # Drawn for silent scenes, too, so that a tone that moves changes nothing else.
        seconds, begin = rng.uniform(*_TONE_SECONDS), rng.uniform(*_TONE_BEGINS)
        loud, where = rng.uniform(*_LOUD), rng.random()
        if tone is None:
            continue
        low, high = _PITCHES[tone]
        times = np.arange(round(seconds * RATE)) / RATE
        fade = np.minimum(np.minimum(times, times[::-1]) / _FADE_SECONDS, 1)
        first = round((scene * SCENE_SECONDS + begin) * RATE)
        wave = np.sin(2 * np.pi * (low + where * (high - low)) * times)
        samples[first : first + len(times)] += loud * fade * wave
    return samples.astype(np.float32)


def encode_film(frames: np.ndarray, samples: np.ndarray | None, path: Path) -> None:
    """Write a film, which appears when it is complete.

    Args:
        frames: RGB, uint8 [frames, height, width, 3].
        samples: the samples of the sound; None for a film without a track.
    """
    import av

    with (
        atomic_write(path) as aside,
        av.open(
            str(aside), "w", format="mp4", container_options={"fflags": "+bitexact"}
        ) as container,
    ):
        pictures = container.add_stream(
            "libx264",
            rate=_FPS,
            options={"crf": str(_QUALITY), "preset": "veryfast", "tune": "zerolatency"},
        )
        pictures.height, pictures.width = frames.shape[1:3]
        pictures.pix_fmt = "yuv420p"
        pictures.codec_context.thread_count = 1
        pictures.codec_context.time_base = Fraction(1, _FPS)
        sound = None
        if samples is not None:
            sound = container.add_stream("aac", rate=RATE, layout="mono", options=_SOUND_OPTIONS)
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = index
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        if sound is not None and samples is not None:
            _encode_sound(container, sound, samples)


def _encode_sound(container: Any, stream: Any, samples: np.ndarray) -> None:
    import av

    size = stream.codec_context.frame_size
    for first in range(0, len(samples), size):
        part = np.ascontiguousarray(samples[None, first : first + size])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), first
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
