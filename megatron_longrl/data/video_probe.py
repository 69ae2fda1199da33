"""What is in a video file, found by reading its packets and not by trusting its header."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av

from megatron_longrl.data.container_size import declared_size
from megatron_longrl.data.content_hash import identity
from megatron_longrl.data.video_info import VideoError, VideoInfo


@dataclass(frozen=True)
class Scan:
    """The packets of a video stream."""

    info: VideoInfo
    timestamps: tuple[int, ...]
    """Of the shown frames, in presentation order; empty where frames have none of their own."""
    keyframes: tuple[int, ...]
    """Timestamps, increasing, from which decoding can start."""
    has_hidden_frames: bool
    """Some packets are only there for others to refer to: a packet is not a frame."""

    def keyframe_before(self, timestamp: int) -> int:
        """The last timestamp at or before this one from which decoding can start."""
        before = bisect_right(self.keyframes, timestamp)
        return self.keyframes[before - 1] if before else self.timestamps[0]


def probe(path: str | Path) -> VideoInfo:
    """Count a video's frames by its packets.

    Answers are kept as long as the file's size and time of modification stay the same.

    Raises:
        VideoError: not there, not a video, empty, or truncated.
    """
    return _info(*identity(path))


def scan(path: str | Path) -> Scan:
    """Like :func:`probe`, with the timestamps of all frames."""
    return _scan(*identity(path))


@lru_cache(maxsize=65536)
def _info(path: Path, size: int, modified: int) -> VideoInfo:
    return _scan(path, size, modified).info


@lru_cache(maxsize=64)  # timestamps of long videos take room
def _scan(path: Path, size: int, modified: int) -> Scan:
    try:
        declared = declared_size(path)
        if declared is not None and size < declared:
            raise VideoError(path, f"the file is truncated: {size} of {declared} bytes")
        # Without metadata errors: titles in some old encoding are nobody's concern here.
        with av.open(str(path), metadata_errors="ignore") as container:
            return _scan_container(path, container)
    except av.FFmpegError as error:
        raise VideoError(path, f"not a video that can be read: {error.strerror}") from None
    except OSError as error:
        raise VideoError(path, error.strerror or "cannot be read") from None


def _scan_container(path: Path, container: Any) -> Scan:
    if not container.streams.video:
        raise VideoError(path, "the file has no video stream")
    stream = container.streams.video[0]
    codec = stream.codec_context.codec.canonical_name
    shown, hidden, end = [], 0, 0
    keyframes = []
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if codec == "vp8" and not bytes(packet)[0] & 0x10:  # the show_frame bit
            hidden += 1
            continue
        shown.append(packet.pts)
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        if packet.pts is not None:
            end = max(end, packet.pts + (packet.duration or 0))
    if not shown or not stream.width or not stream.height:
        raise VideoError(path, "the video has no frames")
    if len(shown) + hidden < stream.frames:
        raise VideoError(path, f"the file is truncated: {len(shown)} of {stream.frames} frames")
    fps = float(stream.average_rate or 0)
    end_seconds = float(end * stream.time_base) if stream.time_base else 0.0
    claimed = _claimed_seconds(container, stream)
    # Not every container stores the duration of the last frame, nor where the first one starts.
    tolerance = max(0.05 * claimed, 2 / fps if fps else 0.0)
    if end and end_seconds < claimed - tolerance:
        raise VideoError(path, f"the file is truncated: {end_seconds:.1f} of {claimed:.1f} seconds")
    info = VideoInfo(
        num_frames=len(shown),
        fps=fps,
        width=stream.width,
        height=stream.height,
        codec=codec,
        duration_seconds=max(claimed, end_seconds),
    )
    # AVI has no presentation times; what FFmpeg makes up goes wrong where frames are reordered.
    distinct = (
        container.format.name != "avi" and None not in shown and len(set(shown)) == len(shown)
    )
    return Scan(
        info=info,
        timestamps=tuple(sorted(shown)) if distinct else (),
        keyframes=tuple(sorted(keyframes)) if distinct else (),
        has_hidden_frames=hidden > 0,
    )


def _claimed_seconds(container: Any, stream: Any) -> float:
    """Seconds of video that the header claims; 0 when it says nothing of the video alone."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        pass  # no such tag, or written in another way
    if len(container.streams) == 1 and container.duration:
        return float(container.duration / av.time_base)
    return 0.0
