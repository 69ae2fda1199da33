"""Draw moving-cups clips with numpy and encode them as VP9 (WebM) or H.264 (MP4).

Lengths inside a frame are fractions of its side. Cups are known by the place they stand at:
0 left, 1 middle, 2 right. All three cups of a clip look the same, so only following the
swaps tells where the ball is.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from megatron_longrl.atomic_file import atomic_write
from megatron_longrl.errors import UserError

SLOT_X = (1 / 6, 1 / 2, 5 / 6)
CUP_Y, CUP_WIDTH, CUP_HEIGHT = 0.58, 0.27, 0.36
LIFT, BALL_RADIUS, ARC = 0.36, 0.12, 0.17
REST_FRAMES = 1
CODECS = {"vp9": ("libvpx-vp9", "webm"), "h264": ("libx264", "mp4")}


@dataclass(frozen=True)
class Clip:
    """The course of one clip.

    Attributes:
        start: place of the ball when it is shown, 0 to 2.
        swaps: per swap the two places whose cups change; the first cup passes behind.
        style: seed of the colours and of the small displacement of everything.
    """

    start: int
    swaps: tuple[tuple[int, int], ...]
    style: int

    @property
    def content(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Return the parts of a clip that decide the answer, without its look."""
        return self.start, self.swaps

    def ball_path(self) -> list[int]:
        """Places of the ball: at the start and after each swap, ``len(swaps) + 1`` of them."""
        path = [self.start]
        for first, second in self.swaps:
            place = path[-1]
            path.append(second if place == first else first if place == second else place)
        return path


@dataclass(frozen=True)
class Timing:
    """The timing of a clip: reveal, a rest, the swaps, and a rest until the end.

    Attributes:
        frames: number of frames of every clip.
        reveal: frames at the start in which the cups are lifted.
        per_swap: frames of one swap.
    """

    frames: int
    reveal: int
    per_swap: int

    @classmethod
    def fit(cls, frames: int, max_swaps: int, reveal: int) -> Timing:
        """Give each of ``max_swaps`` swaps the same number of frames, at least two."""
        per_swap = (frames - reveal - REST_FRAMES) // max_swaps
        if per_swap < 2:
            need = reveal + REST_FRAMES + 2 * max_swaps
            raise UserError(
                f"{frames} frames are too few for {max_swaps} swaps: give at least {need}"
            )
        return cls(frames, reveal, per_swap)


def cup_centres(clip: Clip, timing: Timing) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the cups in each frame.

    Returns:
        Centres [frames, 3, (x, y)] as fractions of the side, the cups in drawing order
        (far ones first), and whether the ball is visible [frames].
    """
    rest = np.array([[x, CUP_Y] for x in SLOT_X])
    centres = np.repeat(rest[None], timing.frames, axis=0)
    shown = np.arange(timing.frames) < timing.reveal
    centres[shown, :, 1] -= LIFT
    at = timing.reveal + REST_FRAMES
    for behind, front in clip.swaps:
        still = 3 - behind - front
        for step in range(timing.per_swap):
            phase = (step + 0.5) / timing.per_swap
            ease = phase * phase * (3 - 2 * phase)
            arc = np.array([0.0, ARC * np.sin(np.pi * phase)])
            way = (rest[front] - rest[behind]) * ease
            far, near = rest[behind] + way - arc, rest[front] - way + arc
            centres[at + step] = np.stack([far, rest[still], near])
        at += timing.per_swap
    return centres, shown


def _colour(rng: np.random.Generator, low: float, high: float, spread: float) -> np.ndarray:
    """A random RGB colour [3] of a brightness in [low, high] and a tint of at most ``spread``."""
    return np.clip(rng.uniform(low, high) + rng.uniform(-spread, spread, 3), 0, 255)


def render_clip(clip: Clip, timing: Timing, size: int) -> np.ndarray:
    """Draw a clip.

    Returns:
        RGB frames [frames, size, size, 3], uint8. The same arguments give the same frames.
    """
    rng = np.random.default_rng(clip.style)
    table, cup = _colour(rng, 25, 75, 20), _colour(rng, 130, 175, 40)
    ball = np.array([rng.uniform(215, 255), rng.uniform(120, 255), rng.uniform(20, 255)])
    shift = rng.uniform(-0.02, 0.02, 2)
    grain = rng.normal(0.0, 3.0, (timing.frames, size, size, 1))

    centres, shown = cup_centres(clip, timing)
    axis = (np.arange(size) + 0.5) / size
    x, y = axis[None, None, :] - shift[0], axis[None, :, None] - shift[1]
    image = np.broadcast_to(table, (timing.frames, size, size, 3)).astype(np.float64, order="C")

    def paint(cover: np.ndarray, colour: np.ndarray) -> None:
        """Blend ``colour`` where ``cover`` [frames, size, size] is 1, softly at the edges."""
        image[...] += cover[..., None] * (colour - image)

    ball_y = CUP_Y + CUP_HEIGHT / 2 - BALL_RADIUS * 0.6
    distance = np.hypot(x - SLOT_X[clip.start], y - ball_y)
    soft = np.clip((BALL_RADIUS - distance) * size + 0.5, 0, 1)
    paint(soft * shown[:, None, None], ball)
    for index in range(3):
        dx = np.abs(x - centres[:, index, 0][:, None, None])
        dy = y - centres[:, index, 1][:, None, None]
        half = CUP_WIDTH / 2 * (0.82 + 0.36 * dy / CUP_HEIGHT)  # narrower at the top
        side = np.clip((half - dx) * size + 0.5, 0, 1)
        ends = np.clip((CUP_HEIGHT / 2 - np.abs(dy)) * size + 0.5, 0, 1)
        rim = np.clip((np.abs(dy + CUP_HEIGHT * 0.36) - 0.03) * size + 0.5, 0, 1)
        outline = np.clip((half - dx) * size - 0.5, 0, 1)
        shade = 0.55 + 0.45 * np.minimum(rim, outline)
        paint(side * ends, cup * shade[..., None])
    return np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)


def encode_clip(frames: np.ndarray, path: Path, codec: str, quality: int, fps: int) -> None:
    """Write RGB frames [frames, height, width, 3] as a video; the file appears when complete.

    Args:
        codec: a key of ``CODECS``.
        quality: constant rate factor, lower is better.
        fps: frames per second.
    """
    import av

    name, container_format = CODECS[codec]
    options = {"crf": str(quality)}
    if codec == "vp9":
        options |= {"b": "0", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
    else:
        options |= {"preset": "veryfast", "tune": "zerolatency"}
    with (
        atomic_write(path) as aside,
        av.open(
            str(aside), "w", format=container_format, container_options={"fflags": "+bitexact"}
        ) as container,
    ):
        stream = container.add_stream(name, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
