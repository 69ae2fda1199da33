"""Video files: what is in them, which frames to take, and their pixels by DALI.

DALI decodes exactly the frames that are asked for (VP8, VP9 and MJPEG on a CPU, all codecs of NVDEC on a
GPU), resizes and normalises them. For codecs that DALI cannot decode on a CPU, frames decoded by PyAV go
through the same resize and normalisation.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from megatron_longrl.platforms import platform

CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
"""Codecs for which DALI has a CPU decoder."""

_VIDEOS_PER_RUN = 16
_TRUNCATED = "the file is truncated: "


class VideoError(Exception):
    """A video that cannot be read; one line that names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {' '.join(str(reason).split())}")


@dataclass(frozen=True)
class VideoInfo:
    """What a look at a file's packets tells."""

    num_frames: int
    fps: float
    width: int
    height: int
    codec: str
    duration_seconds: float


@dataclass(frozen=True)
class VideoSpec:
    """Frames of a video and how they are preprocessed: squares of ``size``, (x / 255 - mean) / std."""

    path: str
    content: str
    """Hash of the file's bytes."""
    frame_indices: tuple[int, ...]
    """In presentation order of the file."""
    size: int
    mean: float
    std: float

    def key(self) -> str:
        """Identifies these pixels: content, frames and preprocessing."""
        text = f"{self.content}/{self.frame_indices}/{self.size}/{self.mean}/{self.std}"
        return hashlib.sha256(text.encode()).hexdigest()


def probe(path: str | Path) -> VideoInfo:
    """Count a video's frames by its packets, not by what its header claims.

    Raises:
        VideoError: not a video, empty, or shorter than its header says (truncated).
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise VideoError(path, error.strerror or "cannot be read") from None
    return _probe(path, stat.st_size, stat.st_mtime_ns)


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes.

    Raises:
        VideoError: it cannot be read.
    """
    path = Path(path)
    try:
        stat = path.stat()
        return _hash(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise VideoError(path, error.strerror or "cannot be read") from None


def sample_frame_indices(
    info: VideoInfo, max_frames: int | None, fps: float | None
) -> tuple[int, ...]:
    """Which frames to take.

    With ``fps``, one frame per 1 / fps seconds, at most ``max_frames``; else ``max_frames`` spread
    uniformly from the first to the last frame, as LongVILA samples; else all.
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
        positions: which of ``spec.frame_indices`` to decode; None for all.

    Returns:
        float32 [f, 3, size, size].

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
        Per request float32 [f, 3, size, size], or the error that it met.
    """
    results: list[Tensor | VideoError] = [
        torch.empty(0, 3, spec.size, spec.size) for spec, _ in requests
    ]
    batches: dict[tuple[Any, ...], list[tuple[int, list[np.ndarray]]]] = {}
    for number, (spec, positions) in enumerate(requests):
        if not len(positions):
            continue
        indices = [spec.frame_indices[position] for position in positions]
        try:
            kind, inputs = _inputs(spec, indices)
        except VideoError as error:
            results[number] = error
            continue
        recipe = (kind, spec.size, spec.mean, spec.std)
        batches.setdefault(recipe, []).append((number, inputs))
    for recipe, entries in batches.items():
        for start in range(0, len(entries), _VIDEOS_PER_RUN):
            part = entries[start : start + _VIDEOS_PER_RUN]
            outputs = _run_with_care(recipe, part, [requests[number][0].path for number, _ in part])
            for (number, _), output in zip(part, outputs, strict=True):
                results[number] = output
    return results


def _inputs(spec: VideoSpec, indices: list[int]) -> tuple[str, list[np.ndarray]]:
    """What DALI is fed: the file's bytes and frame numbers, or frames that PyAV decoded."""
    info = probe(spec.path)
    if max(indices) >= info.num_frames:
        raise VideoError(spec.path, f"frame {max(indices)} of {info.num_frames} was asked for")
    if platform.name == "cuda" or info.codec in CPU_CODECS:
        encoded = np.fromfile(spec.path, dtype=np.uint8)
        return "encoded", [encoded, np.asarray(indices, dtype=np.int32)]
    return "frames", [_decode_with_pyav(spec.path, indices)]


def _run_with_care(
    recipe: tuple[Any, ...], entries: list[tuple[int, list[np.ndarray]]], paths: list[str]
) -> list[Tensor | VideoError]:
    """Run a batch; when DALI refuses it, run its videos one by one to find which it is."""
    try:
        return list(_run(recipe, [inputs for _, inputs in entries]))
    except RuntimeError as error:
        _pipelines.__dict__.pop("by_recipe", None)  # a pipeline that has failed is of no use
        if len(entries) == 1:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in lines if "rror" in line and ":" in line), lines[0])
            return [VideoError(paths[0], f"cannot be decoded: {reason}")]
    return [
        _run_with_care(recipe, [entry], [path])[0]
        for entry, path in zip(entries, paths, strict=True)
    ]


_pipelines = threading.local()
"""DALI pipelines of this thread, by recipe: building one takes longer than running it."""


def _run(recipe: tuple[Any, ...], inputs: list[list[np.ndarray]]) -> list[Tensor]:
    """One run of the recipe's pipeline over a batch of videos."""
    by_recipe = _pipelines.__dict__.setdefault("by_recipe", {})
    if recipe not in by_recipe:
        by_recipe[recipe] = _build_pipeline(*recipe)
    pipeline = by_recipe[recipe]
    for name, column in zip(_FEEDS[recipe[0]], zip(*inputs, strict=True), strict=True):
        pipeline.feed_input(name, list(column))
    (output,) = pipeline.run()
    output = output.as_cpu() if platform.name == "cuda" else output
    # A copy: DALI reuses its buffers in the next run.
    return [torch.from_numpy(np.array(output.at(i))) for i in range(len(inputs))]


_FEEDS = {"encoded": ("encoded", "indices"), "frames": ("frames",)}


def _build_pipeline(kind: str, size: int, mean: float, std: float) -> Any:
    """Decode (or take frames), resize to a square with antialiased bicubic filter, normalise."""
    import nvidia.dali.fn as fn
    import nvidia.dali.types as types
    from nvidia.dali import pipeline_def

    on_gpu = platform.name == "cuda"

    @pipeline_def(
        batch_size=_VIDEOS_PER_RUN,
        num_threads=1,
        device_id=platform.device.index if on_gpu else None,
        prefetch_queue_depth=1,
    )
    def pipeline() -> Any:
        if kind == "encoded":
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            indices = fn.external_source(name="indices", dtype=types.INT32, ndim=1)
            device = "mixed" if on_gpu else "cpu"
            frames = fn.decoders.video(encoded, device=device, frames=indices)
        else:
            frames = fn.external_source(name="frames", dtype=types.UINT8, ndim=4, layout="FHWC")
        frames = fn.resize(
            frames, size=[size, size], interp_type=types.INTERP_CUBIC, antialias=True
        )
        return fn.crop_mirror_normalize(
            frames,
            dtype=types.FLOAT,
            output_layout="FCHW",
            mean=[255.0 * mean] * 3,
            std=[255.0 * std] * 3,
        )

    built = pipeline()
    built.build()
    return built


def _decode_with_pyav(path: str, indices: Sequence[int]) -> np.ndarray:
    """uint8 [f, h, w, 3] of the frames with these numbers, in presentation order of the file."""
    wanted = set(indices)
    frames: dict[int, np.ndarray] = {}
    try:
        with av.open(path) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    if frame.is_corrupt:
                        raise VideoError(path, f"frame {number} is corrupt")
                    frames[number] = frame.to_ndarray(format="rgb24")
                    if len(frames) == len(wanted):
                        break
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be decoded: {error.strerror}") from None
    missing = sorted(wanted - set(frames))
    if missing:
        raise VideoError(path, f"{_TRUNCATED}frame {missing[0]} is missing")
    return np.stack([frames[index] for index in indices])


@lru_cache(maxsize=65536)
def _hash(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=65536)
def _probe(path: Path, size: int, modified: int) -> VideoInfo:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(path, "the file has no video stream")
            stream = container.streams.video[0]
            ends, claimed = [], stream.frames
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    ends.append((packet.pts or 0) + (packet.duration or 0))
            base = float(stream.time_base) if stream.time_base else 0.0
            fps = float(stream.average_rate or 0)
            codec, width, height = stream.codec_context.name, stream.width, stream.height
            duration = _claimed_duration(container, stream)
    except av.FFmpegError as error:
        raise VideoError(path, f"not a video that can be read: {error.strerror}") from None
    codec = codec.removeprefix("lib").split("-")[0]
    if not ends or not width or not height:
        raise VideoError(path, "the video has no frames")
    if claimed and len(ends) < claimed:
        raise VideoError(path, f"{_TRUNCATED}{len(ends)} of {claimed} frames")
    end = max(ends) * base
    tolerance = max(0.05 * duration, 2 / fps if fps else 0.0)
    if end < duration - tolerance:
        raise VideoError(path, f"{_TRUNCATED}{end:.1f} of {duration:.1f} seconds")
    return VideoInfo(len(ends), fps, width, height, codec, max(duration, end))


def _claimed_duration(container: Any, stream: Any) -> float:
    """Seconds of video that the header claims; 0 when it says nothing of the video alone."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION")
    if tag:
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    alone = len(container.streams) == 1
    return container.duration / av.time_base if alone and container.duration else 0.0
