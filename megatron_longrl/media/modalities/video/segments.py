"""The segments of a video that have to be decoded for some of its frames, as files in memory.

DALI decodes a file from its start, whatever frames are asked for. For the end of a long video, or a
few frames of it, it is given a file that begins with the key frame before them instead. Packets are
copied as they are, so that the pixels are the same.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video.coded_frames import READERS
from megatron_longrl.media.modalities.video.open import opened
from megatron_longrl.media.modalities.video.probe import Scan

_STEP = Fraction(1, 25)
"""Seconds between frames that have no times."""
_LEAST_SKIPPED = 8
"""Frames that must be left out for a segment of its own: to open one costs a few frames' time."""


@dataclass(frozen=True)
class FrameSegment:
    """Neighbouring frames of a video that are decoded together."""

    first: int
    """Number of the frame, a key frame, with which the segment begins."""
    wanted: tuple[int, ...]
    """Numbers of the wanted frames, increasing."""

    @property
    def length(self) -> int:
        """Frames that are decoded."""
        return self.wanted[-1] + 1 - self.first


def plan_segments(found: Scan, wanted: Sequence[int]) -> list[FrameSegment]:
    """Plan the segments to decode for increasing frame numbers; a video that cannot be cut is one
    segment."""
    if not found.timestamps:
        return [FrameSegment(0, tuple(wanted))]
    segments: list[tuple[int, list[int]]] = []
    for frame in wanted:
        start = _frame_at(found, found.keyframe_before(found.timestamps[frame]))
        if not segments or start - segments[-1][1][-1] > _LEAST_SKIPPED:
            segments.append((start, []))
        segments[-1][1].append(frame)
    return [FrameSegment(first, tuple(frames)) for first, frames in segments]


def _frame_at(found: Scan, timestamp: int) -> int:
    """Number of the frame shown at a timestamp; 0 where none begins there."""
    number = bisect_left(found.timestamps, timestamp)
    is_there = number < len(found.timestamps) and found.timestamps[number] == timestamp
    return number if is_there else 0


def cut(path: str, found: Scan, segment: FrameSegment) -> np.ndarray | None:
    """Return the bytes of a file with the segment's frames, uint8 [n], the first of them number 0.

    The file tells the size of the stream's frames. None where FFmpeg takes the one that the
    container tells for it, and that is another one; where the container does not find its way to
    the key frame; or where it has no times and the codec shows frames in another order than it
    codes them in.
    """
    if not found.timestamps and found.info.codec not in READERS:
        return None
    try:
        return _copy(path, found, segment)
    except MediaError:
        return None  # who decodes the file without cutting it finds out more


def _copy(path: str, found: Scan, segment: FrameSegment) -> np.ndarray | None:
    first, last = (
        found.timestamps[frame] if found.timestamps else None
        for frame in (segment.first, segment.wanted[-1])
    )
    file = io.BytesIO()
    count = 0
    with opened(path) as (source, stream), av.open(file, "w", format="matroska") as target:
        if (stream.width, stream.height) != found.stored_size:
            return None
        copy = target.add_stream_from_template(stream)
        for packet in _packets(source, stream, first, last):
            if count == 0 and not (packet.is_keyframe and first in (None, packet.pts)):
                return None
            if first is None:  # in the order of the file
                packet.time_base, packet.pts, packet.dts = _STEP, count, count
            else:
                packet.pts -= first
                packet.dts = None if packet.dts is None else packet.dts - first
            packet.stream = copy
            target.mux(packet)
            count += 1
            if count == segment.length:
                break
    if count != segment.length:
        return None
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


def _packets(source: Any, stream: Any, first: int | None, last: int | None) -> Iterator[Any]:
    """Packets of the frames shown from ``first`` to ``last``; all where they have no times."""
    if first is not None:
        source.seek(first, stream=stream)
    for packet in source.demux(stream):
        if not packet.size:
            continue
        if first is not None and last is not None:
            if packet.pts is None or packet.pts < first:
                continue
            if packet.pts > last:
                return
        yield packet
