"""Pixels of video frames: exactly those that are asked for, resized and normalised by DALI.

DALI decodes VP8, VP9 and MJPEG on a CPU, and what NVDEC can on a GPU. All else is decoded by PyAV
and goes through the same graph. Both ways give the same pixels on a CPU, bit for bit, and give them
as VILA reads videos: colours as BT.601 whatever the file's tag says, no rotation, the whole frame
squeezed to the size asked for with an antialiased bicubic filter. Against Pillow's filter, which
Hugging Face's processors use, levels (0 to 255) differ by at most 1 on smooth pictures and by 0.5
on average on noise. NVDEC's pixels differ a little from a CPU decoder's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

import numpy as np
import torch
from torch import Tensor

from megatron_longrl.data import video_dali
from megatron_longrl.data.frame_view import FrameView, Tiling
from megatron_longrl.data.image import read_image
from megatron_longrl.data.video_dali import DECODED_BY_DALI, VIDEOS_PER_RUN, Recipe
from megatron_longrl.data.video_probe import (
    Scan,
    VideoError,
    VideoInfo,
    content_hash,
    probe,
    scan,
)
from megatron_longrl.data.video_pyav import decode_in_chunks
from megatron_longrl.data.video_segments import Piece, cut, plan_pieces
from megatron_longrl.platforms import platform

__all__ = [
    "FrameView",
    "VideoError",
    "VideoInfo",
    "VideoSpec",
    "content_hash",
    "decode_frames",
    "decode_many",
    "probe",
    "sample_frame_indices",
]

_RUN_BYTES = 256 * 2**20
"""Files and full-size frames held at a time; only the results are kept longer."""


@dataclass(frozen=True)
class VideoSpec:
    """Frames of a video or an image, and how they are preprocessed."""

    path: str
    content: str
    """Hash of the file's bytes."""
    frame_indices: tuple[int, ...]
    """In presentation order of the file, or numbers of an image's tiles; a multiple of
    ``view.frames_per_unit``."""
    view: FrameView
    source_pixels: int = field(default=0, compare=False)
    """Width times height of the file's frames: what decoding one costs."""
    is_image: bool = field(default=False, compare=False)
    """Pillow reads the file, not a video decoder."""
    frames_per_second: float = field(default=0.0, compare=False)
    """At which the frames were taken; 0 where the file has no notion of time."""

    def key(self) -> str:
        """Identifies these pixels: content, frames and preprocessing."""
        return self._key

    @cached_property
    def _key(self) -> str:
        text = f"{self.content}/{self.frame_indices}/{self.view}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def num_units(self) -> int:
        """Units of work of the tower."""
        return len(self.frame_indices) // self.view.frames_per_unit

    @property
    def num_tokens(self) -> int:
        """Embeddings."""
        return self.num_units * self.view.tokens_per_unit


def sample_frame_indices(
    info: VideoInfo, max_frames: int | None, fps: float | None
) -> tuple[int, ...]:
    """Which frames to take.

    With ``fps``, one frame per 1 / fps seconds, at most ``max_frames``; else ``max_frames``. They
    are spread uniformly from the first to the last frame, as LongVILA samples. Without either, or
    from a video that has fewer, all.
    """
    count = info.num_frames
    if fps is not None and info.fps > 0:
        count = max(1, min(count, round(info.num_frames / info.fps * fps)))
    if max_frames is not None:
        count = min(count, max_frames)
    return tuple(int(i) for i in np.linspace(0, info.num_frames - 1, count).round())


def decode_frames(spec: VideoSpec, positions: Sequence[int] | None = None) -> Tensor:
    """Pixels of one video.

    Args:
        positions: which of ``spec.frame_indices`` to decode, in any order; None for all.

    Returns:
        float32 [f, 3, height, width].

    Raises:
        VideoError: a frame cannot be decoded.
    """
    wanted = range(len(spec.frame_indices)) if positions is None else positions
    (result,) = decode_many([(spec, wanted)])
    if isinstance(result, VideoError):
        raise result
    return result


def decode_many(
    requests: Sequence[tuple[VideoSpec, Sequence[int]]],
) -> list[Tensor | VideoError]:
    """Pixels of several videos, by few runs of DALI.

    Args:
        requests: specifications, and which of their frames to decode.

    Returns:
        Per request float32 [f, 3, height, width], or the error that it met.
    """
    results: list[Tensor | VideoError] = [
        torch.empty(len(positions), 3, spec.view.height, spec.view.width)
        for spec, positions in requests
    ]
    pending: dict[Recipe, list[_Part]] = {}
    for number, (spec, positions) in enumerate(requests):
        try:
            for part in _parts(number, spec, [spec.frame_indices[p] for p in positions]):
                if isinstance(results[number], VideoError):
                    break
                waiting = pending.setdefault(part.recipe, [])
                held = part.bytes + sum(other.bytes for other in waiting)
                if waiting and (len(waiting) == VIDEOS_PER_RUN or held > _RUN_BYTES):
                    _run(waiting, results)
                    waiting.clear()
                waiting.append(part)
        except VideoError as error:
            results[number] = error
    for waiting in pending.values():
        if waiting:
            _run(waiting, results)
    return results


@dataclass
class _Part:
    """Some frames of a request, ready for DALI."""

    number: int
    """Of the request."""
    rows: Sequence[int]
    """Of the request's result."""
    spec: VideoSpec
    recipe: Recipe
    inputs: tuple[np.ndarray, ...]
    bytes: int
    """Memory that it takes in DALI."""
    first: int = 0
    """Number of the frame with which the encoded input begins."""
    tiling: Tiling = (1, 1)
    """Into which the resized frame is cut, where it is an image that becomes tiles."""
    tiles: Sequence[int] = (0,)
    """Numbers of those that are asked for, row by row."""

    def cut(self, frames: Tensor) -> Tensor:
        """DALI's output [f, 3, H, W] -> what is asked for."""
        if self.tiling == (1, 1):
            return frames
        rows, columns = self.tiling
        grid = frames[0].unflatten(1, (rows, -1)).unflatten(3, (columns, -1))
        return grid.permute(1, 3, 0, 2, 4).flatten(0, 1)[list(self.tiles)]


def _parts(number: int, spec: VideoSpec, indices: Sequence[int]) -> Iterator[_Part]:
    """Cut a request into parts whose frames at full size fit into the memory of a run."""
    if not indices:
        return
    if spec.is_image:
        yield from _parts_of_image(number, spec, indices)
        return
    found = scan(spec.path)
    if max(indices) >= found.info.num_frames:
        raise VideoError(
            spec.path, f"frame {max(indices)} was asked for, and there are {found.info.num_frames}"
        )
    by_dali = found.info.codec in DECODED_BY_DALI[platform.name] and not found.has_hidden_frames
    if not by_dali:
        yield from _parts_by_pyav(number, spec, indices, range(len(indices)))
        return
    recipe = Recipe("encoded", spec.view.mean, spec.view.std)
    frame_bytes = found.info.width * found.info.height * 3
    step = max(1, _RUN_BYTES // frame_bytes)
    in_order = sorted(range(len(indices)), key=lambda row: indices[row])
    whole = cache(partial(np.fromfile, spec.path, dtype=np.uint8))  # read once, where it is needed
    for start in range(0, len(indices), step):
        rows = in_order[start : start + step]
        for piece in plan_pieces(found, sorted({indices[row] for row in rows})):
            here = [row for row in rows if piece.wanted[0] <= indices[row] <= piece.wanted[-1]]
            encoded, first = _encoded(spec.path, found, piece, whole)
            frames = np.asarray([indices[row] - first for row in here], dtype=np.int32)
            size = encoded.nbytes + len(here) * frame_bytes
            inputs = (encoded, frames, _size(spec))
            yield _Part(number, here, spec, recipe, inputs, size, first)


def _parts_of_image(number: int, spec: VideoSpec, indices: Sequence[int]) -> Iterator[_Part]:
    """One for every copy of the image whose tiles are asked for; or the image, repeated."""
    image = read_image(spec.path)
    if not spec.view.tilings:
        yield _decoded(number, range(len(indices)), spec, np.stack([image] * len(indices)))
        return
    first = 0
    for rows, columns in spec.view.tilings:
        behind = first + rows * columns
        here = [row for row, index in enumerate(indices) if first <= index < behind]
        if here:
            part = _decoded(number, here, spec, image[None])
            size = np.asarray([rows, columns], dtype=np.float32) * _size(spec)
            tiles = [indices[row] - first for row in here]
            yield replace(part, inputs=(part.inputs[0], size), tiling=(rows, columns), tiles=tiles)
        first = behind


def _encoded(
    path: str, found: Scan, piece: Piece, whole: Callable[[], np.ndarray]
) -> tuple[np.ndarray, int]:
    """A file with the frames of a piece, uint8 [n], and which frame of the video is its first.

    Args:
        whole: reads the file.
    """
    if piece.length < found.info.num_frames:
        encoded = cut(path, found, piece)
        if encoded is not None:
            return encoded, piece.first
    return whole(), 0


def _parts_by_pyav(
    number: int, spec: VideoSpec, indices: Sequence[int], rows: Sequence[int]
) -> Iterator[_Part]:
    info = probe(spec.path)
    chunk = max(1, _RUN_BYTES // (info.width * info.height * 3))
    for positions, frames in decode_in_chunks(spec.path, indices, chunk):
        yield _decoded(number, [rows[p] for p in positions], spec, frames)


def _decoded(number: int, rows: Sequence[int], spec: VideoSpec, frames: np.ndarray) -> _Part:
    """A part whose frames, uint8 [f, h, w, 3], are decoded already."""
    recipe = Recipe("frames", spec.view.mean, spec.view.std)
    return _Part(number, rows, spec, recipe, (frames, _size(spec)), frames.nbytes)


def _size(spec: VideoSpec) -> np.ndarray:
    """What DALI resizes to: height and width."""
    return np.asarray([spec.view.height, spec.view.width], dtype=np.float32)


def _run(parts: Sequence[_Part], results: list[Tensor | VideoError]) -> None:
    """Run parts of one recipe and write their pixels, or errors, into the results."""
    parts = [part for part in parts if isinstance(results[part.number], Tensor)]
    if not parts:
        return
    try:
        outputs = video_dali.run(parts[0].recipe, [part.inputs for part in parts])
    except RuntimeError as error:
        # One of them is bad, or of a kind that this decoder lacks; find out which.
        for part in parts:
            if len(parts) > 1:
                _run([part], results)
            elif part.recipe.source == "encoded":
                _run_refused(part, results)
            else:
                results[part.number] = VideoError(part.spec.path, f"DALI: {error}")
        return
    for part, output in zip(parts, outputs, strict=True):
        target = results[part.number]
        assert isinstance(target, Tensor)
        target[list(part.rows)] = part.cut(output)


def _run_refused(part: _Part, results: list[Tensor | VideoError]) -> None:
    """What DALI cannot decode PyAV perhaps can; if not, it has the better words for the reason."""
    try:
        indices = (part.inputs[1] + part.first).tolist()
        for again in _parts_by_pyav(part.number, part.spec, indices, part.rows):
            _run([again], results)
    except VideoError as error:
        results[part.number] = error
