"""Frames by PyAV, for codecs that DALI has no decoder for."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from megatron_longrl.data.video_info import VideoError
from megatron_longrl.data.video_probe import Scan, scan

# DALI's conversion to RGB on CPU, bit for bit. It takes every video for BT.601, whatever its tag
# says, and so does OpenCV, with which VILA reads videos.
_INTERPOLATION = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


def decode_in_chunks(
    path: str, indices: Sequence[int], chunk_frames: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Decode frames by number, in the order of the file, seeking to keyframes where that is less.

    Args:
        indices: numbers in presentation order, in any order, repeated or not.
        chunk_frames: frames held at once, at most.

    Yields:
        Positions in ``indices``, and their frames, uint8 [f, h, w, 3].

    Raises:
        VideoError: a frame is missing, corrupt, or of another size than the first.
    """
    found = scan(path)
    positions: dict[int, list[int]] = {}
    for position, index in enumerate(indices):
        positions.setdefault(index, []).append(position)
    reformatter = VideoReformatter()
    where: list[int] = []
    frames: list[np.ndarray] = []
    shape = (found.info.height, found.info.width, 3)
    for index, frame in _decode(path, sorted(positions), found):
        if frame.is_corrupt:
            raise VideoError(path, f"frame {index} is corrupt")
        pixels = reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=Colorspace.ITU601,
            interpolation=_INTERPOLATION,
        ).to_ndarray()
        if pixels.shape != shape:
            raise VideoError(path, f"frame {index} has another size than the first")
        for position in positions[index]:
            where.append(position)
            frames.append(pixels)
            if len(frames) == chunk_frames:
                yield where, np.stack(frames)
                where, frames = [], []
    if frames:
        yield where, np.stack(frames)


def _decode(path: str, wanted: Sequence[int], found: Scan) -> Iterator[tuple[int, Any]]:
    """(number, frame) for increasing numbers."""
    count = 0
    try:
        if not found.timestamps:
            count = yield from _by_counting(path, wanted)
        else:
            # Seeking is not exact in every container: what it did not find is read for.
            for seek in (True, False):
                count += yield from _by_timestamp(path, wanted[count:], found, seek=seek)
                if count == len(wanted):
                    return
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be decoded: {error.strerror}") from None
    if count < len(wanted):
        raise VideoError(path, f"frame {wanted[count]} of {found.info.num_frames} is missing")


@contextmanager
def _open(path: str) -> Iterator[tuple[Any, Any]]:
    with av.open(path, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # ranks share the cores of a machine
        yield container, stream


def _by_timestamp(
    path: str, wanted: Sequence[int], found: Scan, *, seek: bool
) -> Generator[tuple[int, Any], None, int]:
    """Returns how many of the wanted frames it met before one that it could not find."""
    with _open(path) as (container, stream):
        decoder = container.decode(stream)
        passed: int | None = None  # timestamp of the last frame decoded
        for count, index in enumerate(wanted):
            target = found.timestamps[index]
            keyframe = found.keyframe_before(target)
            if seek and (passed is None or keyframe > passed):
                container.seek(keyframe, stream=stream)
                decoder = container.decode(stream)
            for frame in decoder:
                passed = frame.pts
                if passed is None or passed >= target:
                    break
            if passed != target:
                return count
            yield index, frame
        return len(wanted)


def _by_counting(path: str, wanted: Sequence[int]) -> Generator[tuple[int, Any], None, int]:
    count = 0
    with _open(path) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index == wanted[count]:
                yield index, frame
                count += 1
                if count == len(wanted):
                    break
    return count
